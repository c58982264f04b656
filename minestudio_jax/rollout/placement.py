"""Where and how Ray runs the actors of a run, and what room there is for more."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from minestudio_jax.config import RolloutConfig
from minestudio_jax.rollout.heap_variables import heap_variables

_CPU_ONLY = {"JAX_PLATFORMS": "cpu"}  # an actor must never touch the learner's accelerator


def buffer_options() -> dict[str, Any]:
    """Ray's options for the replay buffer: on this process's node, with which it lives and dies."""
    # Of the nodes Ray would choose any for an actor that asks for no CPU.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "runtime_env": {"env_vars": _CPU_ONLY}, "scheduling_strategy": here}


def reserve(rollout: RolloutConfig) -> PlacementGroup | None:
    """A rollout worker's place on some node, the one with the most room: it keeps that through all its lives.

    Nobody else in the cluster gets it while the worker is started again. If the node is lost, Ray finds another one.
    A place of its own for each worker, and not one group for all, can be given back when a worker is no longer wanted.

    Returns:
      The place, which may have to wait for room; None if a worker asks for nothing.
    """
    needs = {kind: amount for kind, amount in _needs(rollout).items() if amount}
    return placement_group([needs], strategy="SPREAD") if needs else None


def give_back(place: PlacementGroup | None) -> None:
    """Ends a reservation before the run's end, which ends all; whoever still runs there is killed."""
    if place is not None:
        remove_placement_group(place)


def worker_options(rollout: RolloutConfig, place: PlacementGroup | None) -> dict[str, Any]:
    """Ray's options for a rollout worker at the place that is reserved for it."""
    variables = _CPU_ONLY
    if rollout.inference_platform != "cpu":
        # A part of a GPU is shared with others: JAX takes what it needs instead of nearly all there is. What platforms
        # the learner may use says nothing here.
        variables = {"JAX_PLATFORMS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {
        "num_cpus": rollout.num_cpus_per_worker,
        "num_gpus": rollout.num_gpus_per_worker,
        "resources": rollout.resources,
        "runtime_env": {"env_vars": variables | heap_variables()},
        "scheduling_strategy": "SPREAD" if place is None else PlacementGroupSchedulingStrategy(place, 0),
    }


def room(rollout: RolloutConfig, number: int) -> str:
    """What `number` rollout workers ask for and what Ray has, as part of a sentence; each must fit on one node."""
    free, there = ray.available_resources(), ray.cluster_resources()
    parts = [
        f"{number} x {each:g} {kind}s, of Ray's {there.get(kind, 0.0):g} are {free.get(kind, 0.0):g} free"
        for kind, each in _needs(rollout).items()
        if each
    ]
    return "asking for " + (" and for ".join(parts) or "nothing")


def _needs(rollout: RolloutConfig) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": rollout.num_cpus_per_worker, "GPU": rollout.num_gpus_per_worker, **rollout.resources}
