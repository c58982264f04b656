"""The embedded world as a simulator of the game: keys in, frames and statistics out, commands by chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.envs.minecraft import Frame, Keys
from minestudio_jax.envs.voxel import World, commands
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel.state import State, WorldSettings
from minestudio_jax.envs.voxel.statistics import NAMES

SHAPE = (4, 6, 3)


class VoxelSimulator:
    """One embedded world, stepped tick by tick.

    Its episodes begin with the world's mobs, but with nothing in the hands and by day: that is the callbacks' part. Only
    the statistics that Minecraft knows are told. Commands take no time, and nothing is drawn.

    Args:
      world: with `action_set="minerl"` and one tick a step.
      reset, step: of it, jitted.
    Attributes:
      state: of the world.
      craft: number of the craft action that goes with the next tick's keys: what a player does at Minecraft's screens.
    """

    frame_shape = SHAPE

    def __init__(self, world: World, reset: Callable[..., State], step: Callable[..., Any]) -> None:
        assert (world.action_set, world.settings.frame_skip) == ("minerl", 1)
        self._world, self._reset, self._step = world, reset, step
        self.state: State
        self.craft = 0

    def seed_worlds(self, seed: int) -> None:
        pass

    def reset(self, seed: int | None) -> Frame:
        begun = self._reset(jax.random.key(seed or 0))
        self.state = dataclasses.replace(
            begun, inventory=inv.start_inventory({}), time=jnp.int32(WorldSettings.start_time)
        )
        return self._frame()

    def step(self, keys: Keys) -> Frame:
        if "chat" in keys:
            self.state = commands.execute(self.state, self._world.settings, keys["chat"])
        else:
            self.state, _ = self._step(self.state, controls(keys, self.craft))
        return self._frame()

    def close(self) -> None:
        pass

    def _frame(self) -> Frame:
        state: State = jax.device_get(self.state)
        statistics = {}
        for event, names in NAMES.items():
            counts = getattr(state.statistics, event)
            statistics[event] = {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}
        for ours in ("climb_one_block", "approach_one_block", "reach_goal"):
            statistics["custom"].pop(ours, None)
        dead = bool(state.vitals.health <= 0)
        told = {
            "is_alive": not dead,
            "health": float(state.vitals.health),
            "food": int(state.vitals.food),
            "position": tuple(state.player.position.tolist()),
            "on_ground": bool(state.player.on_ground),
        }
        return Frame(np.zeros(SHAPE, np.uint8), dead, statistics, told)


def controls(keys: Keys, craft: int = 0) -> dict[str, np.ndarray]:
    """An action of the world's from a simulator's keys, and the number of a craft action."""
    return {
        "craft": np.int32(craft),
        **{name: np.asarray(keys[name], np.int32) for name in actions.BUTTONS},
        "camera": np.asarray(keys["camera"], np.float32),
    }
