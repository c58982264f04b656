"""What a run needs, from its compiled update: the report of the program `plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from minestudio_jax.config import Config, ConfigError, num_environments, plays_minecraft
from minestudio_jax.envs import actions
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.mesh_shape import mesh_shape, sized_replay
from minestudio_jax.policies.make_policy import policy_to_train, vpt_shape
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.rollout.environments import embedded_spec
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.abstract import abstract_iteration, abstract_state, device_bytes, shardings_of
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.batch import fragment_bytes
from minestudio_jax.trainer.cost import cost_of, peak_flops
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.traffic import traffic_of
from minestudio_jax.trainer.update import jitted_update


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known beforehand.

    Attributes:
      device_tflops: what one device can do, TFLOP/s; 0: that of the first device here, measured.
      utilisation: share of it that an update reaches.
      env_steps_per_s: of one environment.
    """

    device_tflops: float
    utilisation: float
    env_steps_per_s: float


def report(config: Config, assumptions: Assumptions) -> str:
    """Lines for the screen.

    Raises:
      ConfigError: settings that do not fit each other or the devices, or environments that nothing is known of.
    """
    trainer, length = config.trainer, config.rollout.fragment_length
    shape = mesh_shape(trainer.mesh, jax.device_count())
    buffered = config.rollout.mode != "device"
    chunks = sized_replay(config, jax.device_count()).max_chunks if buffered else 0
    try:
        spec = _spec(config)
        policy = policy_to_train(config, spec)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    mesh = sharding.make_mesh(trainer)
    auxiliary = AuxiliaryLosses(trainer, sharding.batch_shards(mesh))
    auxiliary_data = sharding.with_sharding(auxiliary.draw(0, 0), sharding.along_batch(mesh, axis=2))

    state = abstract_state(policy, trainer, mesh)
    batch = abstract_iteration(policy, trainer, mesh, spec, length)
    update = jitted_update(policy, trainer, mesh, shardings_of(state), auxiliary)
    compiled: Any = update.lower(state, batch, Coefficients.abstract(), auxiliary_data).compile()
    cost = cost_of(update, compiled, state, batch, trainer, auxiliary_data)
    traffic = traffic_of(compiled, mesh.size)
    between = compiled.memory_analysis().temp_size_in_bytes

    tflops = assumptions.device_tflops or peak_flops("float32") / 1e12
    seconds = cost.flop / mesh.size / (tflops * 1e12 * assumptions.utilisation)
    environments = math.ceil(cost.steps / seconds / assumptions.env_steps_per_s)
    capacity, one = chunks * config.replay.fragments_per_chunk, fragment_bytes(policy, spec, length)
    axes = " x ".join(f"{axis} {size}" for axis, size in shape.items())
    sent = ", ".join(f"{kind} {_size(number)}" for kind, number in sorted(traffic.sent_bytes.items()) if number)
    where = "" if jax.default_backend() != "cpu" else ", compiled for CPUs"
    reached = f"if a device reaches {assumptions.utilisation:.0%} of {tflops:.3g} TFLOP/s"
    busy = f"{environments:,} of {assumptions.env_steps_per_s:g} steps/s keep the learner busy"
    figures = {
        "mesh": f"{axes}: {mesh.size} devices{where}",
        "parameters in all": f"{cost.parameters:,} ({_size(4 * cost.parameters)})",
        "an update": f"{cost.steps:,} steps in {cost.optimizer_steps} optimiser steps, {cost.flop / 1e12:,.2f} TFLOP",
        "on each device": f"{_size(cost.device_bytes)}, of which",
        "  parameters": _size(device_bytes(state.params)),
        "  optimiser": _size(device_bytes(state.optimizer)),
        "  reference": _size(device_bytes(state.reference)),
        "  fragments": _size(device_bytes(batch)),
        "  activations, gradient and the like": _size(between),
        "network": f"each device sends {_size(traffic.total_bytes)} an update" + (f": {sent}" if sent else ""),
        **({"replay": f"{capacity} fragments of {_size(one)}: {_size(capacity * one)}"} if buffered else {}),
        "time of an update": f"{seconds:.3g} s, {reached}",
        "environments": f"{busy}; the settings have {num_environments(config):,}",
    }
    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {figure}" for name, figure in figures.items())


def _spec(config: Config) -> EnvironmentSpec:
    """Of the environments, without starting any.

    Raises:
      ConfigError: they say it themselves only once they have started.
    """
    env = config.env
    if not env.factory:
        return embedded_spec(config)
    if config.policy.network == "vpt" and not config.policy.factory:
        return spec_of(vpt_shape(config.policy))
    if plays_minecraft(env) and env.resize:
        return EnvironmentSpec({"image": ArraySpec((*env.resize, 3), "uint8")}, dict(actions.VPT_ACTION_SPEC))
    raise ConfigError(
        f"env.factory={env.factory!r}: what its environments show is known only once one has started; plan with "
        "policy.network=vpt, or, for Minecraft, with env.resize"
    )


def _size(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f} B"
