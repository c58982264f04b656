"""MineStudio's `MinecraftSim` as a simulator: `--env.factory=minestudio`.

It is used for what it knows of the engine. What it makes of an episode is put right here: an end is the engine's to
tell and a termination, info is of this step and not of all before it, every world has a seed, and actions are not
changed. Its engine is started by us (`engine.py` says why).

Simulator side: NumPy, the standard library and MineStudio only, Python 3.8 syntax.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Dict, Union

import numpy as np

from minestudio_jax.envs import engine_info
from minestudio_jax.envs.engine import Instance
from minestudio_jax.envs.env import EnvironmentFailure, MisconfiguredEnvironment
from minestudio_jax.envs.factory import (
    CommonOptions,
    WorldSeeds,
    callbacks_of,
    common_options,
    first_biome,
    make_environment,
    open_instance,
    read_task,
)
from minestudio_jax.envs.minecraft import Frame, Keys, MinecraftEnvironment
from minestudio_jax.envs.minerl_client import HEAP_MIB, JAR, be_patient

_MINERL = "minestudio.simulator.minerl.env"


def make(
    index: int,
    seed: int,
    task: Union[str, Mapping[str, Any]] = "",
    *,
    render_size: Sequence[int] = (640, 360),
    preferred_spawn_biome: str = "",
    inventory: Mapping[str, Any] | None = None,
    num_empty_frames: int = 20,
    camera_config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Mapping[str, Any]] = (),
    **common: Any,
) -> MinecraftEnvironment:
    """The factory behind `--env.factory=minestudio`; options come from env.options.

    Args:
      index, seed: as every factory's.
      task: as a mapping, or a name that rewards nothing.
      render_size: width and height that Minecraft draws; `env.resize` makes images smaller, as VPT does.
      preferred_spawn_biome: that a world begins in, where the task names none; empty: any.
      inventory: number of a slot -> {"type", "quantity"} that the player begins with, where no task says it.
      num_empty_frames: ticks of doing nothing after a new world.
      camera_config: fields of MineStudio's CameraConfig, for its callbacks; actions are VPT's, whatever it says.
      callbacks: MineStudio's own, each {"path": "package.module:Class", "arguments": {...}}. They may press keys, run
        commands and record; rewards and ends come from the task.
      common: fields of `factory.CommonOptions` and of `engine.Launch`.
    Raises:
      MisconfiguredEnvironment: MineStudio, its engine, a program or an option is missing or wrong.
      EnvironmentFailure: the engine does not start.
    """
    if num_empty_frames < 1:
        raise MisconfiguredEnvironment(f"env.options: num_empty_frames={num_empty_frames} must be 1 at least")
    options, wanted = common_options(common), read_task(task)
    begins_in = first_biome(wanted, preferred_spawn_biome)
    manager, talk = _import(f"{_MINERL}.malmo").InstanceManager, _import(f"{_MINERL}._multiagent")
    jar = os.path.join(manager.MINECRAFT_DIR, *JAR)
    runtime = manager.RUNTIME_DIR if os.path.isdir(manager.RUNTIME_DIR) else ""
    entry = _import("minestudio.simulator.entry")
    # It asks the keyboard for leave to download the engine; Engine says what is missing.
    entry.check_engine = lambda: None
    sim = entry.MinecraftSim(
        action_type="env",
        obs_size=tuple(render_size),
        render_size=tuple(render_size),
        preferred_spawn_biome=begins_in or None,
        inventory={int(slot): dict(stack) for slot, stack in (inventory or {}).items()},
        num_empty_frames=num_empty_frames,
        callbacks=[_callback(named) for named in callbacks],
        camera_config=None if camera_config is None else entry.CameraConfig(**camera_config),
    )
    be_patient(talk, _import(f"{_MINERL}.comms"), options.reset_timeout_s)
    playing = callbacks_of(wanted, seed, index, options.record, finds_biomes=True)
    defaults = {"template_dir": runtime, "heap_mib": HEAP_MIB["minestudio"]}
    instance = open_instance(index, options, defaults, lambda: jar)
    return make_environment(instance, lambda: MineStudioSimulator(sim, instance, seed, options), playing)


class MineStudioSimulator:
    """A MinecraftSim under the contract of `minecraft.Simulator`.

    Args:
      sim: a MinecraftSim of action type "env" whose observations have the size that it renders.
      instance: closed with the simulator.
      seed: of the stream of worlds' seeds.
      options: say how long the engine may be silent.
    """

    def __init__(self, sim: Any, instance: Instance, seed: int, options: CommonOptions) -> None:
        width, height = sim.render_size
        self.frame_shape = (int(height), int(width), 3)
        self._sim, self._instance, self._seeds = sim, instance, WorldSeeds(seed)
        self._reset_timeout_s, self._step_timeout_s = options.reset_timeout_s, options.step_timeout_s
        sim.env.instances = [instance]

    def seed_worlds(self, seed: int) -> None:
        self._seeds.begin(seed)

    def reset(self, seed: int | None) -> Frame:
        self._sim.env.seed(self._seeds.next(seed), seed_spaces=False)  # counts for the next world only
        self._sim.info = {}
        observation, info = self._instance.asked("reset", self._sim.reset, self._reset_timeout_s)
        self._instance.client_socket.settimeout(self._step_timeout_s)
        return self._frame(observation, info)

    def step(self, keys: Keys) -> Frame:
        self._sim.info = {}  # it is added to otherwise, so that what was told once would seem to be told again
        step = partial(self._sim.step, dict(keys))
        observation, _, _, _, info = self._instance.asked("step", step, self._step_timeout_s)
        return self._frame(observation, info)

    def close(self) -> None:
        try:
            self._sim.close()
        finally:
            self._instance.close()

    def _frame(self, observation: Dict[str, Any], info: Dict[str, Any]) -> Frame:
        image = np.asarray(observation["image"])
        if image.shape != self.frame_shape:
            raise EnvironmentFailure(f"MinecraftSim gave a frame of {list(image.shape)}, asked was {self.frame_shape}")
        told = _as_told(info)
        state = engine_info.state(told)
        # Whether the mission has ended is the engine's to say: callbacks of MineStudio call a time limit an end.
        done = bool(self._sim.env.done) or not state.get("is_alive", True)
        return Frame(image, done, engine_info.statistics(told), state)


def _as_told(info: Mapping[str, Any]) -> Dict[str, Any]:
    """MinecraftSim's info as the engine told it."""
    told = dict(info)
    place = told.pop("player_pos", {})
    told.update({{"x": "xpos", "y": "ypos", "z": "zpos"}.get(name, name): value for name, value in place.items()})
    told["inventory"] = [{"slot": slot, **stack} for slot, stack in info.get("inventory", {}).items()]
    return told


def _callback(named: Mapping[str, Any]) -> Any:
    """One of MineStudio's callbacks, by import path."""
    module, _, name = str(named.get("path", "")).partition(":")
    if not name or not set(named) <= {"path", "arguments"}:
        raise MisconfiguredEnvironment(
            f"env.options: callbacks: {dict(named)} is not of the form "
            '{"path": "minestudio.simulator.callbacks:SpeedTestCallback", "arguments": {"interval": 50}}'
        )
    return getattr(_import(module), name)(**named.get("arguments", {}))


def _import(module: str) -> Any:
    """A module of MineStudio; nothing of it is imported before a simulator is made.

    Raises:
      MisconfiguredEnvironment: it, or what it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise MisconfiguredEnvironment(
            f"env.python is {sys.executable}, which has no package {missing!r}: there, pip install minestudio "
            "(Python 3.10 or newer, JDK 8), or name another interpreter in env.python"
        ) from error
