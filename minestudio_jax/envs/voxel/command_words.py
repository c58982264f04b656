"""The words of Minecraft's commands: selectors, coordinates, counts and names, as the embedded world has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minestudio_jax.envs.nearest import did_you_mean
from minestudio_jax.envs.tasks import SLOTS
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items
from minestudio_jax.envs.voxel.state import Player

_PLAYER = re.compile(r"@[pasr](\[.*\])?|\w+")  # there is one, whatever he is called
# Where a kind of slot begins, and how many of it there are.
_SLOTS = {"hotbar": (0, inv.HOTBAR), "inventory": (inv.HOTBAR, SLOTS - inv.HOTBAR), "container": (0, SLOTS)}
_MOST = 2**31 - 1  # that Minecraft can count to
_ROUNDING = 1e-3  # blocks by which feet may seem to be in the ground


class CommandError(ValueError):
    """This world cannot carry the command out; the message says why."""


class Coordinate(NamedTuple):
    """One of three, in blocks; counted from the player if `relative`; `whole` if written without a point."""

    relative: bool
    value: float
    whole: bool


Coordinates = Sequence[Coordinate]  # x, y, z


def split(command: str) -> list[str]:
    """A command's words, without its slash, NBT in braces and block states in brackets.

    Raises:
      CommandError: a brace is not closed.
    """
    text, depth, quoted = "", 0, False
    for character in command.strip().removeprefix("/"):
        if depth and character == '"':
            quoted = not quoted
        depth += character == "{" and not quoted
        if not depth:
            text += character
        depth -= character == "}" and not quoted and depth > 0
    if depth:
        raise CommandError("a brace is not closed")
    return [word if word.startswith("@") else re.sub(r"\[.*", "", word) for word in text.split()]


def check_number(usage: str, words: Sequence[str], least: int, most: int) -> None:
    """Raises CommandError unless there are `least` to `most` words."""
    if not least <= len(words) <= most:
        raise CommandError(f"{len(words)} words where it needs {usage}")


def check_player(selector: str) -> None:
    """Raises CommandError unless the selector can mean the player."""
    if not _PLAYER.fullmatch(selector):
        raise CommandError(f"{selector!r} is not the player: use @p, @a, @s or a name")


def count(word: str, least: int = 1) -> int:
    """A number of things. Raises CommandError if it is none."""
    if not word.isdecimal() or not least <= int(word) <= _MOST:
        raise CommandError(f"{word!r} is not a whole number from {least} to {_MOST}")
    return int(word)


def coordinate(word: str) -> Coordinate:
    """Such as ~, ~-2, 5 or 5.5. Raises CommandError if it is none."""
    relative, number = word.startswith("~"), word.removeprefix("~")
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e-?\d+)?", number or ("0" if relative else "")):
        raise CommandError(f"{word!r} is not a coordinate such as 5, 5.5, ~ or ~-2")
    return Coordinate(relative, float(number or 0), "." not in number)


def coordinates(words: Sequence[str]) -> Coordinates:
    """x, y and z. Raises CommandError if they are not three coordinates."""
    check_number("<x> <y> <z>", words, 3, 3)
    return [coordinate(word) for word in words]


def point(player: Player, where: Coordinates) -> jax.Array:
    """The point meant, float32 [3]; whole numbers mean the middle of a cell, as for Minecraft."""
    middle = [0.5 * (c.whole and not c.relative and axis != 1) for axis, c in enumerate(where)]
    offset = jnp.array([c.value + m for c, m in zip(where, middle, strict=True)], jnp.float32)
    return offset + player.position * jnp.array([c.relative for c in where])


def cell(player: Player, where: Coordinates) -> jax.Array:
    """The cell meant, int32 [3]."""
    offset = jnp.array([c.value for c in where], jnp.float32)
    feet = player.position + jnp.array([0.0, _ROUNDING, 0.0])
    return jnp.floor(offset + feet * jnp.array([c.relative for c in where])).astype(jnp.int32)


def slot(word: str) -> int | None:
    """Number of a slot such as hotbar.3; None is the one in the hand. Raises CommandError if there is no such slot."""
    kind, _, number = word.partition(".")
    if word in ("weapon", "weapon.mainhand"):
        return None
    if kind in _SLOTS and number.isdecimal() and int(number) < _SLOTS[kind][1]:
        return _SLOTS[kind][0] + int(number)
    known = [f"{kind}.0 to {kind}.{most - 1}" for kind, (_, most) in _SLOTS.items()]
    raise CommandError(f"the embedded world has no slot {word!r}: it has weapon.mainhand, {', '.join(known)}")


def item(word: str) -> int:
    """An item's id; "air" is items.NONE. Raises CommandError if this world has no such item."""
    return items.ID[known("item", word, items.NAMES)]


def block(word: str) -> int:
    """A block's id. Raises CommandError if this world has no such block."""
    return b.ID[known("block", word, b.NAMES)]


def known(what: str, word: str, names: Iterable[str]) -> str:
    """A name without its namespace. Raises CommandError if it is not among `names`; names the nearest."""
    name, names = word.removeprefix("minecraft:"), tuple(names)
    if name not in names:
        raise CommandError(f"the embedded world has no {what} {name!r}{did_you_mean(name, names)}")
    return name
