"""The embedded world as a game that Malmo's protocol can serve."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.minecraft import Keys
from minestudio_jax.envs.tasks import SLOTS, MobGroup
from minestudio_jax.envs.voxel import command_verbs, commands, crafting, items, survival, terrain
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel.malmo_info import facts, info_of, voxels
from minestudio_jax.envs.voxel.malmo_protocol import Mission, ProtocolError
from minestudio_jax.envs.voxel.malmo_server import Tick
from minestudio_jax.envs.voxel.state import State, WorldSettings
from minestudio_jax.envs.voxel.world import World, make

SPARE_MOBS = 8  # that /summon can add to those of the task
_FOREVER = 1_000_000_000  # ticks; the time limit is the mission's


class _Compiled(NamedTuple):
    """Functions of a world of one biome, drawn in one size."""

    settings: WorldSettings
    reset: Any  # key -> State
    step: Any  # State, action -> State, reward, terminated
    look: Any  # State -> frame, facts


class VoxelGame:
    """One task, in the biome that a mission asks for or its own. A step is a tick.

    Args:
      task: name or path of a task file.
      preset: "vanilla" or "toy"; of both an action lasts one tick here.
      **overrides: of the world's settings.
    Raises:
      ValueError: as `voxel.make`.
    """

    def __init__(self, task: str = "chop_tree", preset: str = "vanilla", **overrides: Any) -> None:
        self._task, self._preset, self._overrides = task, preset, overrides
        self._own_biome = self._world("").settings.biome
        self._compiled: dict[tuple[str, tuple[int, int]], _Compiled] = {}
        self._now: _Compiled | None = None
        self._mission: Mission | None = None
        self._state: Any = None

    def reset(self, seed: int, mission: Mission) -> Tick:
        """A new world; ProtocolError if there is no such biome."""
        assert mission.size is not None
        biome = terrain.biome_called(mission.biome) or self._own_biome
        if biome not in terrain.BIOMES:
            raise ProtocolError(f"the embedded world has no biome {biome!r}; it has {', '.join(terrain.BIOMES)}")
        where = (biome, mission.size)
        if where not in self._compiled:
            self._compiled[where] = _compile(self._world(biome), mission.size)
        self._now, self._mission = self._compiled[where], mission
        self._state = self._now.reset(jax.random.key(np.uint32((seed ^ (seed >> 32)) & 0xFFFFFFFF)))
        for stack in mission.inventory:
            self._state = _with_stack(self._state, stack.slot, stack.item.removeprefix("minecraft:"), stack.count)
        return self._tick(0.0, False, None)

    def step(self, keys: Keys) -> Tick:
        """A tick, after a command in the chat; one that cannot be carried out is a line in the log."""
        assert self._now is not None
        assert self._mission is not None
        command = str(keys.get("chat", "")).strip()
        was_alive = float(self._state.vitals.health) > 0
        if command.startswith("/"):
            try:
                self._state = commands.execute(self._state, self._now.settings, command)
            except commands.CommandError as error:
                logging.error("chat: %s", error)
        elif command:
            logging.info("chat: %s", command)
        if command and was_alive and not self._mission.done_on_death and float(self._state.vitals.health) <= 0:
            self._state = _risen(self._state)
        action = {key: np.int32(keys[key]) for key in BUTTONS}
        craft = np.int32(_craft_action(keys.get("craft", "")))
        camera = np.asarray(keys["camera"], np.float32)
        self._state, reward, terminated = self._now.step(self._state, {**action, "craft": craft, "camera": camera})
        return self._tick(float(reward), bool(terminated), keys.get("voxels"))

    def _tick(self, reward: float, done: bool, box: list[int] | None) -> Tick:
        assert self._now is not None
        frame, told = jax.device_get(self._now.look(self._state))
        info = info_of(told, self._now.settings)
        if box is not None:
            info["voxels"] = voxels(np.asarray(self._state.blocks), told["position"], box)
        return Tick(frame, reward, done, info)

    def _world(self, biome: str) -> World:
        own = {**self._overrides, **({"biome": biome} if biome else {}), "frame_skip": 1, "time_limit": _FOREVER}
        world = make(self._task, self._preset, "minerl", **own)
        # Places for mobs that are summoned, and crafting for clients that know its commands.
        task = dataclasses.replace(world.task, crafting=True, mobs=(*world.task.mobs, MobGroup("none", SPARE_MOBS)))
        return dataclasses.replace(world, task=task)


def _compile(world: World, size: tuple[int, int]) -> _Compiled:
    def step(state: State, action: dict[str, jax.Array]) -> tuple[State, jax.Array, jax.Array]:
        state, timestep = world.step(state, action)
        return state, timestep.reward, timestep.terminated

    def look(state: State) -> tuple[jax.Array, dict[str, Any]]:
        return world.render(state, *size), facts(state)

    return _Compiled(world.settings, jax.jit(world.reset), jax.jit(step), jax.jit(look))


def _with_stack(state: State, slot: int, name: str, count: int) -> State:
    if name not in items.ID or not 0 <= slot < SLOTS:
        logging.warning("the embedded world has no item %r or no slot %d: the mission begins without", name, slot)
        return state
    item = items.ID[name]
    count = min(max(count, 0), int(items.STACK[item]))
    return command_verbs.with_item(state, slot, item if count else items.NONE, count)


def _risen(state: State) -> State:
    """The player after /kill as after Minecraft's respawn: at his first place, healthy, with nothing."""
    inventory = dataclasses.replace(inv.start_inventory({}), selected=state.inventory.selected)
    player = dataclasses.replace(
        state.player, position=state.start, velocity=jnp.zeros(3, jnp.float32), fall_distance=jnp.float32(0)
    )
    return dataclasses.replace(state, player=player, vitals=survival.healthy(), inventory=inventory)


def _craft_action(name: str) -> int:
    """Number of the craft action; what cannot be crafted here is as if nothing was asked for."""
    return crafting.NAMES.index(name) if name in crafting.NAMES else 0
