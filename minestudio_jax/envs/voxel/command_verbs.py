"""What Minecraft's commands do in the embedded world: each function understands a command's arguments.

Their errors are CommandErrors; what depends on the world's settings is only found out when a command is applied.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from minestudio_jax.envs.task_format import TIMES
from minestudio_jax.envs.tasks import DAY_TICKS, SLOTS, TICKS_PER_S
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import command_words as words
from minestudio_jax.envs.voxel import drops as lying
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items, physics, terrain
from minestudio_jax.envs.voxel import mobs as creatures
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.command_words import CommandError, Coordinates
from minestudio_jax.envs.voxel.state import Mobs, State, WorldSettings
from minestudio_jax.envs.voxel.statistics import CUSTOM, counted

_TICKS = {"": 1, "t": 1, "s": TICKS_PER_S, "d": DAY_TICKS}  # of a unit of time
_WAYS_TO_FILL = ("replace", "keep", "destroy", "outline", "hollow")


class Command(NamedTuple):
    """A command whose words have been understood.

    Attributes:
      apply: what it does.
      summons: it needs an empty slot for a mob.
    """

    apply: Callable[[State, WorldSettings], State]
    summons: bool = False


def give(arguments: list[str]) -> Command:
    words.check_number("give <player> <item> [<count>]", arguments, 2, 3)
    words.check_player(arguments[0])
    item, count = words.item(arguments[1]), words.count([*arguments, "1"][2])
    if item == items.NONE:
        raise CommandError("air cannot be given")

    def apply(state: State, settings: WorldSettings) -> State:  # what finds no room is lost
        inventory, _ = inv.add(state.inventory, jnp.int32(item), jnp.int32(count))
        return dataclasses.replace(state, inventory=inventory)

    return Command(apply)


def replaceitem(arguments: list[str]) -> Command:
    if arguments[:1] == ["block"]:
        raise CommandError("only the player has slots: replaceitem entity")
    words.check_number("replaceitem entity <player> <slot> <item> [<count>]", arguments, 4, 5)
    words.check_player(arguments[1])
    slot, item, count = words.slot(arguments[2]), words.item(arguments[3]), words.count([*arguments, "1"][4])
    if item != items.NONE and count > items.STACK[item]:
        raise CommandError(f"{items.NAMES[item]} stacks up to {items.STACK[item]} only")
    return Command(lambda state, settings: with_item(state, slot, item, count))


def with_item(state: State, slot: int | None, item: int, count: int) -> State:
    """With so many of an item in a slot, None being the one in the hand; items.NONE empties it."""
    inventory = state.inventory
    there = jnp.arange(SLOTS) == (inventory.selected if slot is None else slot)
    changed = dataclasses.replace(
        inventory,
        item=jnp.where(there, item, inventory.item),
        count=jnp.where(there, count if item != items.NONE else 0, inventory.count),
        wear=jnp.where(there, 0, inventory.wear),
    )
    return dataclasses.replace(state, inventory=changed)


def clear(arguments: list[str]) -> Command:
    words.check_number("clear [<player>] [<item>] [<most>]", arguments, 0, 3)
    words.check_player([*arguments, "@s"][0])
    item = words.item(arguments[1]) if len(arguments) > 1 else None
    most = words.count(arguments[2]) if len(arguments) > 2 else SLOTS * 64

    def apply(state: State, settings: WorldSettings) -> State:
        inventory = state.inventory
        if item is None:
            left = dataclasses.replace(inv.start_inventory({}), selected=inventory.selected)
        else:
            left = inv.remove(inventory, item, jnp.minimum(inv.count_of(inventory, item), most))
        return dataclasses.replace(state, inventory=left)

    return Command(apply)


def tp(arguments: list[str]) -> Command:
    if arguments and arguments[0].startswith("@"):
        words.check_player(arguments.pop(0))
    if len(arguments) not in (3, 5):
        raise CommandError("it needs tp [<player>] <x> <y> <z> [<yaw> <pitch>]")
    where, turn = words.coordinates(arguments[:3]), [words.coordinate(word) for word in arguments[3:] or ["~", "~"]]

    def apply(state: State, settings: WorldSettings) -> State:
        player = state.player
        yaw, pitch = (c.relative * old + c.value for c, old in zip(turn, (player.yaw, player.pitch), strict=True))
        return _at(state, settings, words.point(player, where), yaw, jnp.clip(pitch, -90.0, 90.0))

    return Command(apply)


def _at(state: State, settings: WorldSettings, position: jax.Array, yaw: jax.Array, pitch: jax.Array) -> State:
    """With the player at rest somewhere else."""
    player = dataclasses.replace(
        state.player,
        position=_within_walls(position, settings),
        velocity=jnp.zeros(3, jnp.float32),
        yaw=((yaw + 180.0) % 360.0 - 180.0).astype(jnp.float32),
        pitch=pitch.astype(jnp.float32),
        on_ground=jnp.bool_(False),
        fall_distance=jnp.float32(0),
    )
    return dataclasses.replace(state, player=player)


def _within_walls(position: jax.Array, settings: WorldSettings) -> jax.Array:
    """The nearest place inside the world, float32 [3]."""
    aside = terrain.MARGIN + 0.5
    high = jnp.array([settings.size - aside, settings.height - 1 - physics.PLAYER.height, settings.size - aside])
    return jnp.clip(position, jnp.array([aside, 1.0, aside]), high).astype(jnp.float32)


def teleportbiome(arguments: list[str]) -> Command:
    """Of MineStudio's Minecraft, for its fast reset: a place far off, which here is a new land around the player."""
    words.check_number("teleportbiome <player> <biome> [<x> <y> <z>]", arguments, 2, 5)
    words.check_player(arguments[0])
    biome = words.known("biome", terrain.biome_called(arguments[1].removeprefix("minecraft:")), terrain.BIOMES)

    def apply(state: State, settings: WorldSettings) -> State:
        if biome != settings.biome:
            raise CommandError(f"teleportbiome {biome}: this world was made for the biome {settings.biome!r}")
        land_key, key = jax.random.split(jax.random.wrap_key_data(state.key))
        land = _new_land(land_key, settings)
        moved = dataclasses.replace(
            state,
            blocks=land.blocks,
            clearance=clearance_of(land.blocks),
            mobs=dataclasses.replace(state.mobs, kind=jnp.zeros_like(state.mobs.kind)),
            drops=lying.none(state.drops.item.shape[0]),
            start=land.position,
            goal=land.goal,
            key=jax.random.key_data(key),
        )
        return _at(moved, settings, land.position, land.yaw, jnp.float32(settings.spawn_pitch))

    return Command(apply)


# Compiled, because outside of a compiled program each of its many small steps would be.
_new_land = jax.jit(terrain.generate, static_argnums=1)


def time(arguments: list[str]) -> Command:
    words.check_number("time set|add <time>", arguments, 2, 2)
    what, when = arguments
    number = re.fullmatch(r"(\d{1,10}(?:\.\d*)?)([tsd]?)", when)
    if what not in ("set", "add") or (when not in TIMES and not number):
        raise CommandError(f"it needs time set|add and a number of ticks or one of {', '.join(TIMES)}")
    ticks = round(float(number[1]) * _TICKS[number[2]]) % DAY_TICKS if number else TIMES[when]

    def apply(state: State, settings: WorldSettings) -> State:
        if not settings.day_cycle and settings.start_time == WorldSettings.start_time:
            logging.warning("time %s %s: without day_cycle this world is drawn as by day", what, when)
        return dataclasses.replace(state, time=((state.time if what == "add" else 0) + jnp.int32(ticks)) % DAY_TICKS)

    return Command(apply)


def kill(arguments: list[str]) -> Command:
    words.check_number("kill [<player>] or kill @e[type=...]", arguments, 0, 1)
    selector = [*arguments, "@s"][0]
    everything = re.fullmatch(r"@e(?:\[type=(!?)([a-z_:]+)\])?", selector)
    if not everything:
        words.check_player(selector)
        return Command(lambda state, settings: _killed(state))
    but, kind = everything[1] == "!", (everything[2] or "").removeprefix("minecraft:")

    def meant(name: str) -> bool:
        return not kind or (name == kind) != but

    def apply(state: State, settings: WorldSettings) -> State:  # mobs leave nothing
        if meant("player"):
            state = _killed(state)
        if meant("item"):
            state = dataclasses.replace(state, drops=lying.none(state.drops.item.shape[0]))
        dies = jnp.array([meant(name) for name in creatures.NAMES])[state.mobs.kind]
        left = jnp.where(dies, 0, state.mobs.kind)
        return dataclasses.replace(state, mobs=dataclasses.replace(state.mobs, kind=left))

    return Command(apply)


def _killed(state: State) -> State:
    statistics = counted(state.statistics, "custom", CUSTOM.index("deaths"), state.vitals.health > 0)
    vitals = dataclasses.replace(state.vitals, health=jnp.float32(0))
    return dataclasses.replace(state, vitals=vitals, statistics=statistics)


def setblock(arguments: list[str]) -> Command:
    words.check_number("setblock <x> <y> <z> <block> [destroy|keep|replace]", arguments, 4, 5)
    where, block, way = words.coordinates(arguments[:3]), words.block(arguments[3]), [*arguments, "replace"][4]
    if way not in ("destroy", "keep", "replace"):
        raise CommandError(f"{way!r} is none of destroy, keep and replace")
    return Command(lambda state, settings: _filled(state, settings, (where, where), block, None, way))


def fill(arguments: list[str]) -> Command:
    words.check_number("fill <x> <y> <z> <x> <y> <z> <block> [<way>] [<block>]", arguments, 7, 9)
    corners, block = (words.coordinates(arguments[:3]), words.coordinates(arguments[3:6])), words.block(arguments[6])
    way, only = [*arguments, "replace"][7], words.block(arguments[8]) if len(arguments) > 8 else None
    if way not in _WAYS_TO_FILL or (only is not None and way != "replace"):
        raise CommandError(f"{' '.join(arguments[7:])!r} is none of {', '.join(_WAYS_TO_FILL)} and replace <block>")
    return Command(lambda state, settings: _filled(state, settings, corners, block, only, way))


def _filled(
    state: State, settings: WorldSettings, corners: tuple[Coordinates, Coordinates], block: int, only: int | None,
    way: str,
) -> State:  # fmt: skip
    """With a block in every cell between two corners, or in those that hold `only`; the walls stay."""
    if block == b.WATER and not terrain.BIOMES[settings.biome].water:
        raise CommandError(f"a world of the biome {settings.biome!r} has no water")
    ends = jnp.stack([words.cell(state.player, corner) for corner in corners])
    low, high = ends.min(axis=0), ends.max(axis=0)
    cells = jnp.stack(jnp.meshgrid(*(jnp.arange(side) for side in state.blocks.shape), indexing="ij"), -1)
    core = ((cells > low) & (cells < high)).all(axis=-1)
    changes = ((cells >= low) & (cells <= high)).all(axis=-1) & (state.blocks != b.BARRIER)
    if way == "keep":
        only = b.AIR
    if only is not None:
        changes &= state.blocks == only
    if way == "outline":
        changes &= ~core
    new = jnp.where(core & (way == "hollow"), b.AIR, block)
    blocks = jnp.where(changes, new, state.blocks).astype(state.blocks.dtype)
    return dataclasses.replace(state, blocks=blocks, clearance=clearance_of(blocks))


def summon(arguments: list[str]) -> Command:
    words.check_number("summon <kind> [<x> <y> <z>]", arguments, 1, 4)
    kind = creatures.ID[words.known("mob", arguments[0], creatures.NAMES[1:])]
    where = words.coordinates(arguments[1:] or ["~", "~", "~"])

    def apply(state: State, settings: WorldSettings) -> State:
        free = state.mobs.kind == 0
        if not free.shape[0] or not (isinstance(free, jax.core.Tracer) or free.any()):
            raise CommandError(f"summon {arguments[0]}: all {free.shape[0]} places for mobs are taken")
        slot = free & (jnp.arange(free.shape[0]) == jnp.argmax(free))
        new: dict[str, Any] = {
            "kind": kind,
            "position": _within_walls(words.point(state.player, where), settings),
            "health": creatures.KINDS[kind].health,
        }
        fields = {}
        for field in dataclasses.fields(Mobs):
            old = getattr(state.mobs, field.name)
            here = slot[:, None] if old.ndim > 1 else slot
            fields[field.name] = jnp.where(here, new.get(field.name, 0), old).astype(old.dtype)
        return dataclasses.replace(state, mobs=Mobs(**fields))

    return Command(apply, summons=True)
