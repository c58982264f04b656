"""Minecraft's commands in the embedded world: `execute(state, settings, "/give @p iron_axe")`.

Pure functions: states may be traced, commands are static. Forms are those of Minecraft 1.16 with selectors of the
player, coordinates with ~, names with or without `minecraft:`, and `execute as @p at @s run ...`. NBT and block states
are ignored. What Minecraft knows and this world has no meaning for, such as `weather`, is accepted with a warning;
everything else that cannot be done is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import logging

from minestudio_jax.envs.voxel import command_verbs as verbs
from minestudio_jax.envs.voxel import command_words as words
from minestudio_jax.envs.voxel.command_verbs import Command
from minestudio_jax.envs.voxel.command_words import CommandError
from minestudio_jax.envs.voxel.state import State, WorldSettings

__all__ = ["Command", "CommandError", "execute", "parse", "summons", "with_mob_slots"]

_VERBS: dict[str, Callable[[list[str]], Command]] = {
    "clear": verbs.clear,
    "fill": verbs.fill,
    "give": verbs.give,
    "kill": verbs.kill,
    "replaceitem": verbs.replaceitem,
    "setblock": verbs.setblock,
    "summon": verbs.summon,
    "teleport": verbs.tp,
    "teleportbiome": verbs.teleportbiome,
    "time": verbs.time,
    "tp": verbs.tp,
}
WITHOUT_MEANING = (
    "defaultgamemode", "difficulty", "effect", "experience", "gamemode", "gamerule", "say", "setworldspawn",
    "spawnpoint", "title", "weather", "xp",
)  # fmt: skip


def execute(state: State, settings: WorldSettings, command: str) -> State:
    """The state after a command. A mob that is summoned takes an empty slot; see `with_mob_slots`.

    Raises:
      CommandError: it is unknown or malformed, or names something that this world does not have.
    """
    return parse(command).apply(state, settings)


def summons(commands: Sequence[str]) -> int:
    """How many empty slots for mobs these commands need. Raises as `execute` does."""
    return sum(parse(command).summons for command in commands)


def with_mob_slots(state: State, number: int) -> State:
    """With so many more empty slots for mobs. They only move in a world whose task has mobs."""
    more = jax.tree.map(lambda a: jnp.concatenate([a, jnp.zeros((number, *a.shape[1:]), a.dtype)]), state.mobs)
    return dataclasses.replace(state, mobs=more)


def parse(command: str) -> Command:
    """Understands a command; what depends on the world's settings is only found out when it is applied.

    Raises:
      CommandError: as `execute`.
    """
    try:
        verb, *arguments = _without_execute(words.split(command)) or [""]
        if verb in WITHOUT_MEANING:
            return Command(lambda state, settings: _ignored(state, command))
        if verb not in _VERBS:
            raise CommandError(f"there is no such command; known are {', '.join(sorted((*_VERBS, *WITHOUT_MEANING)))}")
        return _VERBS[verb](arguments)
    except CommandError as error:
        raise CommandError(f"{command.strip()!r}: {error}") from None


def _without_execute(words_: list[str]) -> list[str]:
    """What `execute as @p at @p run` runs: all happens where the player is anyway."""
    if not words_ or words_[0] != "execute":
        return words_
    if "run" not in words_:
        raise CommandError("execute needs a 'run'")
    end = words_.index("run")
    how, rest = words_[1:end], words_[end + 1 :]
    if len(how) % 2 or any(word not in ("as", "at") for word in how[::2]):
        raise CommandError("of execute only 'as' and 'at' are understood")
    for selector in how[1::2]:
        words.check_player(selector)
    return _without_execute(rest)


def _ignored(state: State, command: str) -> State:
    logging.warning("%r has no meaning in the embedded world and is ignored", command)
    return state
