"""What of the experience side's settings does not go together: tasks, environments, ways of collecting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from minestudio_jax.config import (
    MINECRAFT_FACTORIES,
    Config,
    EnvConfig,
    PublishConfig,
    TrainerConfig,
    factory_path,
    is_number,
    nearest,
    num_environments,
    plays_minecraft,
    task_shares,
)
from minestudio_jax.utils.task_assignment import assigned_tasks


def experience_faults(config: Config) -> list[str]:
    """A sentence for each fault."""
    return [*_task_faults(config), *_process_faults(config), *_mode_faults(config), *_worker_faults(config)]


def _task_faults(config: Config) -> list[str]:
    """What is wrong with several tasks and their weights."""
    env, weights = config.env, config.trainer.task_weights
    wrong = [
        f"env.tasks: the share {share!r} of {task!r} is not a number above 0: give one, or leave the task out"
        for task, share in env.tasks.items()
        if not (is_number(share) and share > 0)
    ]
    wrong += [
        f"trainer.task_weights: the weight {weight!r} of {task!r} is not a number of at least 0"
        for task, weight in weights.items()
        if not (is_number(weight) and weight >= 0)
    ]
    if wrong:
        return wrong
    faults = []
    if env.tasks and env.task != EnvConfig().task:
        faults.append(f"env.task={env.task!r} has no effect with env.tasks={json.dumps(env.tasks)}: remove one of them")
    if env.tasks and config.rollout.mode == "device":
        faults.append(
            "env.tasks needs rollout workers, rollout.mode='device' plays one task: set env.task, or mode 'ray'"
        )
    if env.factory and env.tasks and "task" in env.options:
        faults.append("env.options: 'task' is given to the factory by env.tasks: remove one of them")
    elif plays_minecraft(env) and "task" in env.options:
        faults.append(f"env.options: task={env.options['task']!r} belongs into --env.task")
    played = assigned_tasks(env.tasks, num_environments(config)) if env.tasks else [env.task]
    for task in task_shares(env):
        if task not in played:
            faults.append(
                f"env.tasks: none of the {len(played)} environments would play {task!r}: raise its share, "
                "rollout.num_envs or rollout.num_rollout_workers"
            )
    for task in weights:
        if task not in task_shares(env):
            faults.append(f"trainer.task_weights: {task!r} is not played{nearest(task, list(task_shares(env)))}")
    if not any(weights.get(task, 1.0) for task in task_shares(env)):
        faults.append(
            f"trainer.task_weights={json.dumps(weights)}: nothing would be learnt; give a task a weight above 0"
        )
    return faults


def _process_faults(config: Config) -> list[str]:
    """Settings of environments in processes of their own that are wrong, or given without such environments."""
    faults, env = [], config.env
    if env.factory and factory_path(env).count(":") != 1:
        ours = " or ".join(map(repr, MINECRAFT_FACTORIES))
        faults.append(f"env.factory={env.factory!r} is neither {ours} nor of the form package.module:function")
    port, players = env.options.get("port"), num_environments(config)
    if plays_minecraft(env) and port and players > 1:
        faults.append(
            f"env.options: the engine at port={port} has one player, the settings have {players} environments: remove "
            "it, and each starts an engine of its own, or set rollout.num_envs=1, in one rollout worker"
        )
    if env.resize and len(env.resize) != 2:
        faults.append(f"env.resize={','.join(map(str, env.resize))} is not a height and a width, such as 128,128")
    names = ("python", "max_concurrent_starts", "recycle_after_s", "recycle_after_steps", "recycle_above_mib", "resize")
    for name in (*names, "log_max_mib") if not env.factory else ():
        value = getattr(env, name)
        if value != getattr(EnvConfig(), name):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)
            remedy = "set env.height and env.width" if name == "resize" else "remove it or set env.factory"
            faults.append(f"env.{name}={shown} has no effect on the embedded world: {remedy}")
    return faults


def _given_to_workers(config: Config) -> Iterator[tuple[str, str, Any, Any]]:
    """Section, name, value and default of what only workers and the replay buffer heed.

    Not of how much they hold and send at a time: without them those bounds are kept, too, and a flag file for workers,
    such as configs/quickstart.flags, can be played on the device as it is.
    """
    for section, names in (
        ("rollout", ("max_wait_ms", "max_worker_restarts")),
        ("replay", (
            "fragments_per_chunk", "max_staleness", "max_reuse", "sampling", "samples_per_insert", "when_full",
            "max_restarts",
        )),
    ):  # fmt: skip
        settings = getattr(config, section)
        for name in names:
            yield section, name, getattr(settings, name), getattr(type(settings)(), name)


def _mode_faults(config: Config) -> list[str]:
    """Settings that have no effect, or none of the wanted, in the way of collecting that rollout.mode asks for."""
    faults, rollout, mode = [], config.rollout, config.rollout.mode
    if mode == "device" and config.env.factory:
        faults.append(
            f"rollout.mode='device' plays the embedded world only, env.factory={config.env.factory!r} needs rollout "
            "workers: remove one of them"
        )
    if mode == "device" and config.publish != PublishConfig():
        faults.append(
            f"publish.transport={config.publish.transport!r} and publish.dtype={config.publish.dtype!r} have no "
            "effect with rollout.mode='device', which sends no versions: leave the defaults"
        )
    for section, name, value, default in _given_to_workers(config) if mode == "device" else ():
        if value != default:
            faults.append(
                f"{section}.{name}={value!r} has no effect with rollout.mode='device', which has neither workers nor a "
                f"buffer: leave {default!r}"
            )
    if mode != "ray" and config.trainer.prefetch_iterations > TrainerConfig().prefetch_iterations:
        faults.append(
            f"trainer.prefetch_iterations={config.trainer.prefetch_iterations} has no effect with rollout.mode="
            f"{mode!r}, where the learner waits for its data: remove it"
        )
    if mode != "ray" and rollout.num_rollout_workers != 1:
        faults.append(
            f"rollout.num_rollout_workers={rollout.num_rollout_workers} has no effect with rollout.mode={mode!r}: "
            "set rollout.num_envs"
        )
    if mode != "ray" and rollout.inference_platform != "cpu":
        faults.append(
            f"rollout.inference_platform={rollout.inference_platform!r} has no effect with rollout.mode={mode!r}: "
            "remove it"
        )
    if mode != "ray" and rollout.synchronous:
        faults.append(f"rollout.synchronous has no effect with rollout.mode={mode!r}, which is so anyway: remove it")
    return faults


def _worker_faults(config: Config) -> list[str]:
    """What rollout workers cannot do, or cannot be given."""
    faults, rollout = [], config.rollout
    if rollout.mode != "device" and rollout.inference_batch_size > rollout.num_envs:
        faults.append(
            f"rollout.inference_batch_size={rollout.inference_batch_size} is more than rollout.num_envs="
            f"{rollout.num_envs}: a worker never has that many observations; lower it"
        )
    if (rollout.inference_platform == "accelerator") != (rollout.num_gpus_per_worker > 0):
        faults.append(
            f"rollout.inference_platform={rollout.inference_platform!r} does not go with rollout.num_gpus_per_worker="
            f"{rollout.num_gpus_per_worker:g}: a share of a GPU belongs to 'accelerator', and to nothing else"
        )
    if rollout.num_gpus_per_worker > 1 and rollout.num_gpus_per_worker % 1:
        faults.append(
            f"rollout.num_gpus_per_worker={rollout.num_gpus_per_worker:g} is more than one GPU and no whole number: "
            "Ray gives a part of one, or whole ones"
        )
    for resource, amount in rollout.resources.items():
        if not (is_number(amount) and amount > 0):
            faults.append(f"rollout.resources: {amount!r} of {resource!r} is not a number above 0")
    for resource in ("CPU", "GPU"):
        if resource in rollout.resources:
            faults.append(
                f"rollout.resources: {resource} is reserved by rollout.num_{resource.lower()}s_per_worker: set that"
            )
    if rollout.resources and rollout.mode != "ray":
        faults.append(
            f"rollout.resources={json.dumps(rollout.resources)} has no effect with rollout.mode="
            f"{rollout.mode!r}: remove it"
        )
    return faults
