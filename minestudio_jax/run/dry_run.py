"""--dry_run: the resolved settings and what follows from them, without starting anything."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from minestudio_jax.config import Config, num_environments, num_processes
from minestudio_jax.mesh_shape import batch_shards, fragments_per_iteration, sized_replay
from minestudio_jax.policies.make_policy import policy_to_train
from minestudio_jax.rollout.environments import check_rewards, embedded_spec
from minestudio_jax.run.devices import use_cpu_devices
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.batch import fragment_bytes


def derived_figures(config: Config) -> dict[str, str]:
    """Name -> figure with unit.

    Raises:
      ValueError: settings of the environment, the policy, the experience or the auxiliary losses that do not fit.
    """
    from minestudio_jax.run.experience import check_experience  # brings Ray along

    use_cpu_devices(config)
    hosts = num_processes(config.trainer)
    devices = hosts * jax.device_count()
    fragments = fragments_per_iteration(config.trainer, devices)
    length, trainer = config.rollout.fragment_length, config.trainer
    auxiliary = AuxiliaryLosses(trainer, batch_shards(trainer, devices))
    if trainer.launcher != "external" or trainer.num_hosts:  # otherwise there may be hosts that nobody has told of
        check_experience(config, devices)
    per_step = fragments // trainer.batches_per_iteration * trainer.gradient_accumulation
    figures = {
        "learner devices": f"{devices} ({jax.devices()[0].device_kind})"
        + (f" on {hosts} hosts like this one" if hosts > 1 else ""),
        "environments": str(num_environments(config)),
        "fragments per iteration": str(fragments),
        "steps per iteration": f"{fragments * length:,}",
        "optimiser steps per iteration": str(
            trainer.epochs_per_iteration * trainer.batches_per_iteration // trainer.gradient_accumulation
        ),
        "steps per optimiser step": f"{per_step * length:,}",
    }
    if config.env.factory:
        figures["fragment, buffer, parameters"] = "known once the first environment has started"
        return figures
    check_rewards(config)
    spec = embedded_spec(config)
    auxiliary.check(spec)
    policy = policy_to_train(config, spec)
    one = fragment_bytes(policy, spec, length)
    params = jax.tree.leaves(policy.abstract_params())
    figures["parameters"] = f"{sum(int(np.prod(p.shape)) for p in params):,}"
    figures["memory of one fragment"] = f"{one / 1e6:.2f} MB"
    if config.rollout.mode != "device":
        replay = sized_replay(config, devices)
        capacity = replay.max_chunks * replay.fragments_per_chunk
        if replay.max_gib:
            capacity = min(capacity, int(replay.max_gib * 2**30 / one))
        figures["memory of the full buffer"] = f"{capacity * one / 1e6:,.0f} MB ({capacity} fragments)"
    else:
        figures["memory of an iteration's batch"] = f"{fragments * one / 1e6:,.0f} MB"
    return figures


def report(config: Config) -> str:
    """The text that --dry_run prints."""
    lines = ["# settings, as a flag file"]
    for section in dataclasses.fields(config):
        for key, value in config.to_dict()[section.name].items():
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"--{section.name}.{key}={_json(text)}")
    lines += ["", "# derived"]
    lines += [f"{name}: {figure}" for name, figure in derived_figures(config).items()]
    return "\n".join(lines)


def _json(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)
