"""What the factories of both Minecraft simulators share: an instance, seeds, and the task's callbacks.

Simulator side: NumPy and the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.engine import Engine, Instance, Launch
from minestudio_jax.envs.env import MisconfiguredEnvironment
from minestudio_jax.envs.minecraft import Callback, MinecraftEnvironment, Simulator
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.envs.tasks import Task


def open_instance(
    index: int, port: int, host: str, options: Mapping[str, Any], find_jar: Callable[[], str]
) -> Instance:
    """An engine of its own, or one that listens already.

    Args:
      index: of the environment.
      port: of an engine that runs already; 0: one is started.
      host: where it runs.
      options: fields of Launch.
      find_jar: as for Engine.
    Raises:
      MisconfiguredEnvironment: an option is unknown or has no effect, or a program or a display is missing.
      EnvironmentFailure: the engine does not start.
    """
    known = [field.name for field in dataclasses.fields(Launch)]
    for name in options:
        if name not in known:
            raise MisconfiguredEnvironment(
                f"env.options: there is no {name!r}; of an engine's, known are {', '.join(known)}"
            )
        if port:
            raise MisconfiguredEnvironment(f"env.options: {name} has no effect on the engine at port={port}: remove it")
    return Instance(host, port) if port else Engine(Launch(**options), index, find_jar)


def read_task(task: str | Mapping[str, Any]) -> Task | None:
    """The task that a factory is given: a mapping is one, a name is a label and rewards nothing.

    Raises:
      MisconfiguredEnvironment: the mapping is no task.
    """
    if isinstance(task, str):
        return None
    try:
        return task_from_dict(task, "the task")
    except ValueError as error:
        raise MisconfiguredEnvironment(str(error)) from error


def callbacks_of(
    task: Task | None, seed: int, index: int, record: Mapping[str, Any] | None, finds_biomes: bool
) -> list[Callback]:
    """The task's callbacks; without a task nothing is rewarded, and nothing ends an episode but the game.

    Args:
      task: what is played.
      seed, index, record, finds_biomes: as in `callbacks_for`.
    Raises:
      MisconfiguredEnvironment: the task cannot be played in Minecraft.
    """
    try:
        return [] if task is None else callbacks_for(task, seed, index, record=record, finds_biomes=finds_biomes)
    except ValueError as error:
        raise MisconfiguredEnvironment(str(error)) from error


def make_environment(
    instance: Instance, make_simulator: Callable[[], Simulator], callbacks: Sequence[Callback]
) -> MinecraftEnvironment:
    """The environment of a simulator on an instance, which is closed if it does not come to one."""
    try:
        return MinecraftEnvironment(make_simulator(), callbacks)
    except BaseException:
        instance.close()
        raise


class WorldSeeds:
    """A seed for every world: the one that is asked for, or the next of the stream that it began.

    Args:
      seed: of the stream until one is asked for.
    """

    def __init__(self, seed: int) -> None:
        self._stream = np.random.default_rng(seed)

    def next(self, seed: int | None) -> int:
        """Of the next world, 0 to 2^31 - 1 where none is asked for."""
        if seed is None:
            return int(self._stream.integers(2**31))
        self._stream = np.random.default_rng(seed)
        return int(seed)
