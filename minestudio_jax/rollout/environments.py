"""From settings to a worker's pool of environments."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.rollout.env_pool import EnvPool
from minestudio_jax.utils.seeding import derived_seed

if TYPE_CHECKING:
    from minestudio_jax.envs.voxel import World


def make_pool(config: Config, worker_id: int, worker_life: int, log_dir: Path) -> EnvPool:
    """The environments of one rollout worker: the embedded world in process, or env.factory in processes."""
    env, num_envs = config.env, config.rollout.num_envs
    seed = derived_seed(config.run.seed, "environments", worker_id, worker_life)
    if not env.factory:
        from minestudio_jax.rollout.voxel_pool import VoxelEnvPool

        return VoxelEnvPool(embedded_world(config), num_envs, seed, env.height, env.width)
    from minestudio_jax.rollout.process_pool import ProcessEnvPool

    return ProcessEnvPool(
        env.factory,
        num_envs,
        seed,
        env.options,
        env.python or None,
        log_dir,
        start_deadline_s=env.start_deadline_s,
        reset_deadline_s=env.reset_deadline_s,
        step_deadline_s=env.step_deadline_s,
        max_failures_per_hour=env.max_failures_per_hour,
        first_env_index=worker_id * num_envs,
    )


def check_factory(config: Config) -> None:
    """Checks that env.factory names a module that can be found, as far as that is known without its interpreter.

    Raises:
      ConfigError: it cannot be found.
    """
    if config.env.python:
        return
    module = config.env.factory.partition(":")[0]
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
      ValueError: unknown task or option.
    """
    from minestudio_jax.rollout.voxel_pool import voxel_spec

    return voxel_spec(embedded_world(config), config.env.height, config.env.width)


def embedded_world(config: Config) -> World:
    """The world that the settings describe.

    Raises:
      ValueError: unknown task or option.
    """
    from minestudio_jax.envs import voxel

    env = config.env
    for key in ("task", "preset", "action_set"):
        if key in env.options:
            raise ValueError(f"env.options: {key}={env.options[key]!r} belongs into --env.{key}")
    return voxel.make(env.task, env.preset, env.action_set, **env.options)
