"""From settings to a worker's pool of environments."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minestudio_jax.config import Config, ConfigError, factory_path, plays_minecraft, task_shares
from minestudio_jax.envs.callbacks.for_task import check_for_minecraft
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.envs.tasks import Task, task_to_dict, with_common_actions
from minestudio_jax.rollout.combined_pool import CombinedPool
from minestudio_jax.rollout.env_pool import EnvPool
from minestudio_jax.rollout.recycling import Recycling
from minestudio_jax.rollout.start_limit import StartLimit
from minestudio_jax.utils.seeding import derived_seed
from minestudio_jax.utils.task_assignment import assigned_tasks
from minestudio_jax.utils.task_files import load_task

if TYPE_CHECKING:
    from minestudio_jax.envs.voxel import World


def make_pool(
    config: Config,
    worker_id: int,
    worker_life: int,
    log_dir: Path,
    session_id: str,
    env_cpus: frozenset[int] | None = None,
    env_niceness: int = 0,
    stop: threading.Event | None = None,
) -> EnvPool:
    """The environments of one rollout worker: the embedded world in process, or env.factory in processes.

    Args:
      config: the run's settings.
      worker_id, worker_life: which worker, and how many times it had been restarted.
      log_dir: where the environments' logs go.
      session_id: life of the trainer; its workers on one host share env.max_concurrent_starts.
      env_cpus: that environments' processes may run on; None: those of the calling thread.
      env_niceness: of environments' processes, at least.
      stop: gives up waiting for the first process.
    Raises:
      EnvironmentFailure: no environment can be started.
      ToldToStop: by `stop`.
    """
    env, num_envs = config.env, config.rollout.num_envs
    stream = ("environments", worker_id, worker_life)
    seed = derived_seed(config.run.seed, *stream)
    tasks = worker_tasks(config, worker_id)
    if not env.factory:
        from minestudio_jax.rollout.voxel_pool import VoxelEnvPool

        if not env.tasks:
            return VoxelEnvPool(embedded_world(config, env.task), num_envs, seed, env.height, env.width)
        return CombinedPool(
            [
                VoxelEnvPool(
                    embedded_world(config, task),
                    tasks.count(task),
                    derived_seed(config.run.seed, *stream, task),
                    env.height,
                    env.width,
                )
                for task in dict.fromkeys(tasks)
            ]
        )
    from minestudio_jax.rollout.env_worker import EnvLaunch
    from minestudio_jax.rollout.instance_log import InstanceLog
    from minestudio_jax.rollout.process_pool import ProcessEnvPool

    launch = EnvLaunch(
        factory_path(env),
        env.options,
        env.python or None,
        env.start_deadline_s,
        env.reset_deadline_s,
        env.step_deadline_s,
        worker_id=worker_id,
        first_index=worker_id * num_envs,
        resize=(env.resize[0], env.resize[1]) if env.resize else None,
        cpus=env_cpus,
        niceness=env_niceness,
    )
    return ProcessEnvPool(
        launch,
        [InstanceLog(log_dir, worker_id, env_id, env.log_max_mib * 2**20) for env_id in range(num_envs)],
        seed,
        max_failures_per_hour=env.max_failures_per_hour,
        tasks=factory_tasks(config, tasks),
        recycling=Recycling(env.recycle_after_s, env.recycle_after_steps, env.recycle_above_mib),
        start_limit=StartLimit(session_id, env.max_concurrent_starts),
        stop=stop,
    )


def worker_tasks(config: Config, worker_id: int) -> list[str]:
    """Task of each environment of one worker, those of one task next to each other."""
    shares, num_envs = task_shares(config.env), config.rollout.num_envs
    assigned = assigned_tasks(shares, (worker_id + 1) * num_envs)[-num_envs:]
    return sorted(assigned, key=list(shares).index)


def factory_tasks(config: Config, names: list[str]) -> list[Any] | None:
    """What the factory of each environment gets as task=.

    Args:
      config: the run's settings.
      names: task of each environment.
    Returns:
      For Minecraft the tasks themselves, since its interpreter reads no YAML; for a user's factory the names if there
      are several tasks, and otherwise nothing.
    Raises:
      ValueError: there is no such task, or none for Minecraft.
    """
    if not plays_minecraft(config.env):
        return list(names) if config.env.tasks else None
    tasks = played_tasks(config)
    for task in tasks.values():
        check_for_minecraft(task)
    return [task_to_dict(tasks[name]) for name in names]


def check_factory(config: Config) -> None:
    """Checks before training what is known of env.factory without its interpreter.

    Raises:
      ConfigError: its module cannot be found, or Minecraft has no such task, or one without a reward.
    """
    try:
        factory_tasks(config, [])
        if plays_minecraft(config.env):
            check_rewards(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.env.python:
        return
    module = factory_path(config.env).partition(":")[0]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        raise ConfigError(
            f"env.factory={config.env.factory!r}: there is no module {module!r}; it must be installed or lie in "
            "the directory the program is started from"
        )


def embedded_spec(config: Config) -> EnvironmentSpec:
    """Spec of the embedded world's environments, without building any.

    Raises:
      ValueError: unknown task or option, or tasks that cannot go together.
    """
    from minestudio_jax.rollout.voxel_pool import voxel_spec

    specs = {
        task: voxel_spec(embedded_world(config, task), config.env.height, config.env.width)
        for task in task_shares(config.env)
    }
    (task, spec), *others = specs.items()
    for other, its_spec in others:
        if its_spec != spec:
            raise ValueError(
                f"env.tasks: {other!r} has the actions {its_spec.action}, {task!r} has {spec.action}: one policy "
                "cannot play both; take tasks of one action set, or env.action_set=vpt, which is the same for all"
            )
    return spec


def played_tasks(config: Config) -> dict[str, Task]:
    """The run's tasks, by the names that its settings have for them.

    Raises:
      ValueError: there is no such task, or its file is wrong.
    """
    return with_common_actions({name: load_task(name) for name in task_shares(config.env)})


def check_rewards(config: Config) -> None:
    """Checks that there is something to learn from in every task that is learnt from.

    Raises:
      ConfigError: a task has no reward.
    """
    for name, task in played_tasks(config).items():
        if not task.reward and config.trainer.task_weights.get(name, 1.0) > 0:
            raise ConfigError(
                f"env.task: {name!r} has no reward, so nothing can be learnt from it: add 'reward:' to the file, a "
                "list of terms as in minestudio_jax/tasks, or only evaluate with it"
            )


def embedded_world(config: Config, task: str) -> World:
    """The world that the settings describe, for one of their tasks.

    Raises:
      ValueError: unknown task or option.
    """
    from minestudio_jax.envs import voxel

    env = config.env
    for key in ("task", "preset", "action_set"):
        if key in env.options:
            raise ValueError(f"env.options: {key}={env.options[key]!r} belongs into --env.{key}")
    return voxel.make(played_tasks(config)[task], env.preset, env.action_set, **env.options)
