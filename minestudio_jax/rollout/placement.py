"""Where and how Ray runs the actors of a run, and what room there is for more."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from minestudio_jax.config import RolloutConfig
from minestudio_jax.rollout.policy_loading import HEAP_VARIABLES

_CPU_ONLY = {"JAX_PLATFORMS": "cpu"}  # an actor must never touch the learner's accelerator


def buffer_options() -> dict[str, Any]:
    """Ray's options for the replay buffer: on this process's node, with which it lives and dies."""
    # Of the nodes Ray would choose any for an actor that asks for no CPU.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "runtime_env": {"env_vars": _CPU_ONLY}, "scheduling_strategy": here}


def worker_options(rollout: RolloutConfig) -> dict[str, Any]:
    """Ray's options for a rollout worker: round the nodes that have room."""
    variables = _CPU_ONLY
    if rollout.inference_platform != "cpu":
        # A part of a GPU is shared with others: JAX takes what it needs instead of nearly all there is. What platforms
        # the learner may use says nothing here.
        variables = {"JAX_PLATFORMS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {
        "num_cpus": rollout.num_cpus_per_worker,
        "num_gpus": rollout.num_gpus_per_worker,
        "resources": rollout.resources,
        "runtime_env": {"env_vars": variables | HEAP_VARIABLES},
        "scheduling_strategy": "SPREAD",  # Ray's own way would fill the learner's node first
    }


def room(rollout: RolloutConfig, number: int) -> str:
    """What `number` rollout workers ask for and what Ray has, as part of a sentence; each must fit on one node."""
    free, there = ray.available_resources(), ray.cluster_resources()
    parts = [
        f"{number} x {each:g} {kind}s, of Ray's {there.get(kind, 0.0):g} are {free.get(kind, 0.0):g} free"
        for kind, each in {
            "CPU": rollout.num_cpus_per_worker,
            "GPU": rollout.num_gpus_per_worker,
            **rollout.resources,
        }.items()
        if each
    ]
    return "asking for " + (" and for ".join(parts) or "nothing")
