"""Bounds, choices, and settings against each other: what is wrong is told in full before anything starts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from minestudio_jax.config import (
    MINECRAFT_FACTORIES,
    SINKS,
    Config,
    ConfigError,
    EnvConfig,
    PolicyConfig,
    PublishConfig,
    ReplayConfig,
    TrainerConfig,
    factory_path,
    nearest,
    num_environments,
    plays_minecraft,
    section_types,
    task_shares,
)
from minestudio_jax.mesh_shape import mesh_shape
from minestudio_jax.utils.task_assignment import assigned_tasks


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _task_faults(config: Config) -> list[str]:
    """What is wrong with several tasks and their weights."""
    env, weights = config.env, config.trainer.task_weights
    wrong = [
        f"env.tasks: the share {share!r} of {task!r} is not a number above 0: give one, or leave the task out"
        for task, share in env.tasks.items()
        if not (_is_number(share) and share > 0)
    ]
    wrong += [
        f"trainer.task_weights: the weight {weight!r} of {task!r} is not a number of at least 0"
        for task, weight in weights.items()
        if not (_is_number(weight) and weight >= 0)
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


def _policy_faults(policy: PolicyConfig, trainer: TrainerConfig) -> list[str]:
    """Settings of one network that are given for another, or of values that nobody normalises."""
    faults = []
    network = "a policy.factory of its own" if policy.factory else f"policy.network={policy.network!r}"
    defaults = PolicyConfig()
    others = {
        "impala": ("channels", "hidden_size"),
        "vpt": ("vpt", "vpt_model", "vpt_weights", "compute_dtype", "remat"),
    }
    for owner, names in others.items():
        for name in names:
            value = getattr(policy, name)
            if (policy.factory or policy.network != owner) and value != getattr(defaults, name):
                faults.append(f"policy.{name}={value!r} has no effect with {network}: remove it")
    if policy.vpt and policy.vpt_model:
        faults.append(
            f"policy.vpt={policy.vpt} and policy.vpt_model={policy.vpt_model!r} both say how large the network is: "
            "remove one of them"
        )
    for name in ("use_normalized_vf", "value_statistics") if policy.factory else ():
        value = getattr(trainer, name)
        if value != getattr(TrainerConfig(), name):
            faults.append(
                f"trainer.{name}={value!r} has no effect with {network}, which normalises values in its own way: "
                "remove it"
            )
    if not trainer.use_normalized_vf and trainer.value_statistics != TrainerConfig().value_statistics:
        faults.append(
            f"trainer.value_statistics={trainer.value_statistics!r} is how values are normalised, which "
            "trainer.use_normalized_vf=false takes away: remove one of them"
        )
    return faults


def _replay_faults(replay: ReplayConfig, trainer: TrainerConfig) -> list[str]:
    """Settings of the buffer with which the learner would wait for ever, or that do nothing."""
    faults = []
    if replay.max_staleness < trainer.prefetch_iterations:
        faults.append(
            f"replay.max_staleness={replay.max_staleness} is less than trainer.prefetch_iterations="
            f"{trainer.prefetch_iterations}: data fetched so early would be too old when trained on; raise the "
            "one or lower the other"
        )
    limit = replay.samples_per_insert
    if limit > replay.max_reuse:
        faults.append(
            f"replay.samples_per_insert={limit:g} has no effect with replay.max_reuse={replay.max_reuse}, the most a "
            "fragment can be given anyway: lower the one, raise the other, or 0 sets no limit"
        )
    if 0 < limit < 1 and replay.when_full == "wait":
        faults.append(
            f"replay.samples_per_insert={limit:g} leaves fragments that nobody ever takes, for which "
            "replay.when_full='wait' would keep the workers waiting: set drop_oldest, or at least 1"
        )
    return faults


def _host_faults(config: Config) -> list[str]:
    """Settings of several hosts that do not go together."""
    faults, trainer = [], config.trainer
    launcher, hosts, index, coordinator = (
        trainer.launcher, trainer.num_hosts, trainer.host_index, trainer.coordinator,
    )  # fmt: skip
    if launcher == "none" and hosts > 1:
        faults.append(
            f"trainer.num_hosts={hosts} needs trainer.launcher: 'external' if this command is started on every host, "
            "'ray' if it is started once"
        )
    if launcher == "ray" and not hosts:
        faults.append("trainer.launcher='ray' needs trainer.num_hosts, the number of processes to start")
    if launcher != "external":
        for name, value, default in (("host_index", index, -1), ("coordinator", coordinator, "")):
            if value != default:
                faults.append(
                    f"trainer.{name}={value!r} has no effect with trainer.launcher={launcher!r}: remove it, or set "
                    "'external'"
                )
    elif coordinator:
        if not re.fullmatch(r"[^/]+:\d+", coordinator):
            faults.append(f"trainer.coordinator={coordinator!r} is not of the form host:port")
        if not hosts:
            faults.append(f"trainer.coordinator={coordinator!r} needs trainer.num_hosts, the number of processes")
        elif not 0 <= index < hosts:
            faults.append(
                f"trainer.host_index={index} is not one of the trainer.num_hosts={hosts} hosts, which are counted from "
                f"0: give each host its own, 0 to {hosts - 1}"
            )
    elif index != -1:
        faults.append(
            f"trainer.host_index={index} needs trainer.coordinator, host:port of the first host: give it, or leave "
            "both to what JAX finds out by itself"
        )
    if trainer.host_resources and launcher != "ray":
        faults.append(
            f"trainer.host_resources={json.dumps(trainer.host_resources)} has no effect with trainer.launcher="
            f"{launcher!r}: remove it"
        )
    for name, resources in (
        ("trainer.host_resources", trainer.host_resources),
        ("rollout.resources", config.rollout.resources),
    ):
        for resource, amount in resources.items():
            if not (_is_number(amount) and amount > 0):
                faults.append(f"{name}: {amount!r} of {resource!r} is not a number above 0")
    if "TPU" in trainer.host_resources:
        faults.append(
            "trainer.host_resources: TPU hosts find one another by themselves: start the command on all of them with "
            "trainer.launcher='external'"
        )
    for resource in ("CPU", "GPU"):
        if resource in config.rollout.resources:
            faults.append(
                f"rollout.resources: {resource} is reserved by rollout.num_{resource.lower()}s_per_worker: set that"
            )
    if config.rollout.resources and config.rollout.mode != "ray":
        faults.append(
            f"rollout.resources={json.dumps(config.rollout.resources)} has no effect with rollout.mode="
            f"{config.rollout.mode!r}: remove it"
        )
    if launcher != "none" and config.rollout.mode == "serial":
        faults.append(
            f"rollout.mode='serial' plays in the only process there is, trainer.launcher={launcher!r} starts several: "
            "set mode 'ray' or 'device'"
        )
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


def _coefficient_faults(trainer: TrainerConfig) -> list[str]:
    """What is said of a term of the loss that has no weight."""
    faults = []
    for name, coefficient in (
        ("kl_reference_decay", "kl_reference_coef"),
        ("kl_reference_direction", "kl_reference_coef"),
        ("entropy_bonus_decay", "entropy_bonus_coef"),
    ):
        value, default = getattr(trainer, name), getattr(TrainerConfig(), name)
        if value != default and not getattr(trainer, coefficient):
            faults.append(
                f"trainer.{name}={value!r} has no effect without trainer.{coefficient}: set that, or leave {default!r}"
            )
    return faults


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
    if mode != "ray" and rollout.inference_platform != "cpu":
        faults.append(
            f"rollout.inference_platform={rollout.inference_platform!r} has no effect with rollout.mode={mode!r}: "
            "remove it"
        )
    if mode != "ray" and rollout.synchronous:
        faults.append(f"rollout.synchronous has no effect with rollout.mode={mode!r}, which is so anyway: remove it")
    return faults


def validate(config: Config) -> None:
    """Checks bounds, choices and the settings against each other.

    Raises:
      ConfigError: with one sentence for every fault found, each naming setting, value and remedy.
    """
    faults: list[str] = []
    for section, section_type in section_types().items():
        for f in dataclasses.fields(section_type):
            value = getattr(getattr(config, section), f.name)
            faults.extend(_field_faults(f"{section}.{f.name}", value, f.metadata))
    env, rollout, replay, trainer = config.env, config.rollout, config.replay, config.trainer
    try:
        mesh_shape(trainer.mesh)
    except ConfigError as error:
        faults.append(str(error))
    if rollout.fragment_length % trainer.context_length:
        faults.append(
            f"rollout.fragment_length={rollout.fragment_length} is not a multiple of "
            f"trainer.context_length={trainer.context_length}: make the one divide the other"
        )
    if rollout.mode != "device" and rollout.inference_batch_size > rollout.num_envs:
        faults.append(
            f"rollout.inference_batch_size={rollout.inference_batch_size} is more than rollout.num_envs="
            f"{rollout.num_envs}: a worker never has that many observations; lower it"
        )
    updates, interval = trainer.reference_update, trainer.reference_interval
    if (updates == "interval") != bool(interval):
        faults.append(
            f"trainer.reference_update={updates!r} does not go with trainer.reference_interval={interval}: an interval "
            "of 1 iteration or more belongs to 'interval', and to nothing else"
        )
    if updates != "never" and not trainer.kl_reference_coef:
        faults.append(
            f"trainer.reference_update={updates!r} has no effect without a reference: set trainer.kl_reference_coef, "
            "or 'never'"
        )
    faults.extend(_coefficient_faults(trainer))
    if trainer.advantage_refresh == "epoch" and trainer.epochs_per_iteration == 1:
        faults.append(
            "trainer.advantage_refresh='epoch' has no effect with trainer.epochs_per_iteration=1: remove it, or make "
            "more epochs"
        )
    if trainer.off_policy != "vtrace" and trainer.vtrace_clip != TrainerConfig().vtrace_clip:
        faults.append(
            f"trainer.vtrace_clip={trainer.vtrace_clip} has no effect with trainer.off_policy={trainer.off_policy!r}: "
            "remove it, or set vtrace"
        )
    if 0 < trainer.dual_clip <= 1 + trainer.ppo_clip:
        faults.append(
            f"trainer.dual_clip={trainer.dual_clip} is not above 1 + trainer.ppo_clip={1 + trainer.ppo_clip:g}: the "
            "bound would lie where the ratio is not yet clipped; raise it, or 0 takes it away"
        )
    if trainer.batches_per_iteration % trainer.gradient_accumulation:
        faults.append(
            f"trainer.batches_per_iteration={trainer.batches_per_iteration} is not a multiple of "
            f"trainer.gradient_accumulation={trainer.gradient_accumulation}: the rest would never be applied"
        )
    per_device = trainer.batch_size_per_device * trainer.batches_per_iteration
    buffered = rollout.mode != "device"
    if buffered and per_device % replay.fragments_per_chunk:
        faults.append(
            f"an iteration's {per_device} fragments (trainer.batch_size_per_device x batches_per_iteration) do "
            f"not divide into chunks of replay.fragments_per_chunk={replay.fragments_per_chunk}: change either"
        )
    if buffered and 0 < replay.max_chunks * replay.fragments_per_chunk < per_device:
        least = -(-per_device // replay.fragments_per_chunk)
        faults.append(
            f"replay.max_chunks={replay.max_chunks} chunks of {replay.fragments_per_chunk} cannot hold one "
            f"iteration's {per_device} fragments: raise it to at least {least}, or 0 makes the buffer large enough"
        )
    if buffered:
        faults.extend(_replay_faults(replay, trainer))
    for sink in config.logger.sinks:
        if sink not in SINKS and sink.count(":") != 1:
            faults.append(
                f"logger.sinks: {sink!r} is neither one of {', '.join(SINKS)} nor of the form package.module:function"
            )
    if len(set(config.logger.sinks)) != len(config.logger.sinks):
        faults.append(f"logger.sinks={','.join(config.logger.sinks)} names one twice: remove it")
    if env.factory and factory_path(env).count(":") != 1:
        names = " or ".join(map(repr, MINECRAFT_FACTORIES))
        faults.append(f"env.factory={env.factory!r} is neither {names} nor of the form package.module:function")
    if config.policy.factory and config.policy.factory.count(":") != 1:
        faults.append(f"policy.factory={config.policy.factory!r} is not of the form package.module:function")
    if not re.fullmatch(r"|auto|[^/:]+:\d+", config.run.ray_address):
        faults.append(f"run.ray_address={config.run.ray_address!r} is neither 'auto' nor of the form host:port")
    if 0 < config.run.object_store_gib < replay.max_gib:
        faults.append(
            f"run.object_store_gib={config.run.object_store_gib:g} is less than replay.max_gib={replay.max_gib:g}, "
            "which is kept in it: raise it, or 0 sizes it by the other"
        )
    if config.run.object_store_gib and config.run.ray_address:
        faults.append(
            f"run.object_store_gib={config.run.object_store_gib:g} has no effect on the cluster at run.ray_address="
            f"{config.run.ray_address!r}: remove it, and give 'ray start' its --object-store-memory"
        )
    if config.publish.transport == "tmpfs" and config.run.ray_address:
        faults.append(
            "publish.transport='tmpfs' does not reach the other machines of "
            f"run.ray_address={config.run.ray_address!r}: set object_store, or directory where they share the run "
            "directory"
        )
    faults.extend(_host_faults(config))
    faults.extend(_mode_faults(config))
    faults.extend(_policy_faults(config.policy, trainer))
    faults.extend(_task_faults(config))
    if config.policy.options and not config.policy.factory:
        faults.append(
            f"policy.options={config.policy.options} has no effect without policy.factory: remove it or name a factory"
        )
    faults.extend(_process_faults(config))
    if faults:
        raise ConfigError("; ".join(faults))


def _field_faults(name: str, value: Any, metadata: Any) -> list[str]:
    faults = []
    if metadata["choices"] and value not in metadata["choices"]:
        faults.append(f"{name}={value!r} is not one of {', '.join(metadata['choices'])}")
    for number in value if isinstance(value, tuple) else (value,):
        if metadata["lower"] is not None and not number >= metadata["lower"]:
            faults.append(f"{name}={value} is below its least value {metadata['lower']}")
        if metadata["upper"] is not None and not number <= metadata["upper"]:
            faults.append(f"{name}={value} is above its greatest value {metadata['upper']}")
    if value == () and metadata["lower"] is not None and not metadata["empty"]:
        faults.append(f"{name} is empty: give at least one number, such as 16,32,32")
    return faults
