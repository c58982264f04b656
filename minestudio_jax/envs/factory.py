"""What the factories of both Minecraft simulators share: their options, an instance, seeds, and the task's callbacks.

Simulator side: NumPy and the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minestudio_jax.envs.biomes import group_of
from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.engine import Engine, Instance, Launch
from minestudio_jax.envs.env import MisconfiguredEnvironment
from minestudio_jax.envs.minecraft import Callback, MinecraftEnvironment, Simulator
from minestudio_jax.envs.task_format import one_of, task_from_dict
from minestudio_jax.envs.tasks import Task


@dataclass(frozen=True)
class CommonOptions:
    """Options of both factories, by these names, besides each one's own.

    Attributes:
      record: arguments of the callback Record, "folder" and "every"; None: no videos.
      port, host: of an engine that runs already; 0: one is started.
      reset_timeout_s, step_timeout_s: seconds that the engine may be silent; a little less than env.reset_deadline_s
        and env.step_deadline_s, so that the failure tells why.
      launch: given as fields of `engine.Launch`, each an option by its own name.
    """

    record: Mapping[str, Any] | None = None
    port: int = 0
    host: str = "127.0.0.1"
    reset_timeout_s: float = 230.0
    step_timeout_s: float = 55.0
    launch: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises MisconfiguredEnvironment if a number is none."""
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port < 2**16:
            raise MisconfiguredEnvironment(f"env.options: port={self.port!r} must be a whole number, from 0 to 65535")
        for name in ("reset_timeout_s", "step_timeout_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise MisconfiguredEnvironment(f"env.options: {name}={value!r} must be a number of seconds above 0")


def common_options(given: Mapping[str, Any]) -> CommonOptions:
    """The options that are not a factory's own.

    Raises:
      MisconfiguredEnvironment: one is unknown, or has no effect on an engine that runs already.
    """
    common = [f.name for f in dataclasses.fields(CommonOptions) if f.name != "launch"]
    launch = [f.name for f in dataclasses.fields(Launch)]
    for name in given:
        try:
            one_of(name, (*common, *launch), "env.options: option")
        except ValueError as error:
            raise MisconfiguredEnvironment(str(error)) from error
    options = CommonOptions(
        **{name: given[name] for name in common if name in given},
        launch={name: given[name] for name in launch if name in given},
    )
    if options.port and options.launch:
        raise MisconfiguredEnvironment(
            f"env.options: {', '.join(options.launch)} have no effect on the engine at port={options.port}: remove them"
        )
    return options


def open_instance(
    index: int, options: CommonOptions, defaults: Mapping[str, Any], find_jar: Callable[[], str]
) -> Instance:
    """An engine of its own, or one that listens already.

    Args:
      index: of the environment.
      options: say which.
      defaults: fields of Launch that are not left to Launch's own defaults, unless an option says otherwise.
      find_jar: as for Engine.
    Raises:
      MisconfiguredEnvironment: a program or a display is missing.
      EnvironmentFailure: the engine does not start.
    """
    if options.port:
        return Instance(options.host, options.port)
    return Engine(Launch(**{**defaults, **options.launch}), index, find_jar)


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


def first_biome(task: Task | None, given: str) -> str:
    """The group of biomes that a mission shall begin in: of the task's biome, or of the option `given`; "" is any.

    Raises:
      MisconfiguredEnvironment: Minecraft has no such biome.
    """
    biome = (task.biome if task is not None else "") or given
    try:
        return group_of(biome) if biome else ""
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
    """A seed for every world: the one that is asked for, or the next of a stream.

    Args:
      seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Begins another stream."""
        self._stream = np.random.default_rng(seed)

    def next(self, seed: int | None) -> int:
        """Of the next world, 0 to 2^31 - 1 where none is asked for; one that is leaves the stream as it is."""
        return int(self._stream.integers(2**31)) if seed is None else int(seed)
