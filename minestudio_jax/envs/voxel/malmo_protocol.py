"""Malmo's protocol as MineRL 1.0 and MineStudio speak it: messages, missions and the commands of a step.

A message is its length, four bytes, big-endian, and so many bytes. Facts from MineRL 1.0's Python side
(`minerl/env/_multiagent.py`, `comms.py`) and from its Minecraft's `EnvServer.java`. Standard library and NumPy only.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.minecraft import Keys

MAX_MESSAGE_BYTES = 1 << 24
TICK_MS = 50
_NAMESPACE = "{http://ProjectMalmo.microsoft.com}"
_STEP_TAG = len("<StepClient0>")  # the digit says whether the info is wanted; the closing tag has a space before its >
_STEPS_WITH_INFO = "02"
_OBSERVATIONS = ("ObservationFromFullStats", "ObservationFromFullInventory", "ObservationFromEquippedItem")
# What the info tells only if the mission asks for it; what is not here comes with the full statistics.
_OF_OBSERVATION = {"inventory": _OBSERVATIONS[1], "equipped_items": _OBSERVATIONS[2]}
_ALWAYS = ("isGuiOpen", "health", "food_level", "voxels")
_CRAFTING = ("craft", "nearbyCraft", "nearbySmelt")  # MineRL 0.4's ways to craft without a screen


class ProtocolError(ValueError):
    """The peer does not speak this protocol, or asks for what is not served; its connection is closed."""


@dataclass(frozen=True)
class Stack:
    """Items in one slot at the beginning of a mission."""

    slot: int
    item: str
    count: int


@dataclass(frozen=True)
class Mission:
    """What a client asks for.

    Attributes:
      uid: of the episode.
      seed: of the world; None: any.
      size: height and width of the frame, pixels; None: the server's own.
      biome: to begin in; "": any.
      inventory: at the beginning.
      time_limit: ticks until the mission is over; 0: none.
      done_on_death: /kill ends the mission; else the player gets up again at once, as MineStudio's fast reset needs.
      observes: handlers of observations that the info is made for.
    """

    uid: str
    seed: int | None
    size: tuple[int, int] | None
    biome: str
    inventory: tuple[Stack, ...]
    time_limit: int
    done_on_death: bool
    observes: frozenset[str]


def send(peer: socket.socket, *messages: bytes) -> None:
    """Sends messages."""
    for message in messages:
        peer.sendall(struct.pack("!I", len(message)) + message)


def receive(peer: socket.socket) -> bytes | None:
    """The next message; None if the peer has closed the connection after the last one.

    Raises:
      ProtocolError: it closed it in the middle of one, or what comes is none.
      OSError: the connection is broken.
    """
    header = _exactly(peer, 4)
    if not header:
        return None
    length = int.from_bytes(header, "big") if len(header) == 4 else MAX_MESSAGE_BYTES + 1
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{header!r} is no length of a message")
    message = _exactly(peer, length)
    if len(message) < length:
        raise ProtocolError(f"the connection ended after {len(message)} of a message's {length} bytes")
    return message


def _exactly(peer: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if there are no more."""
    parts: list[bytes] = []
    while count and (part := peer.recv(min(count, 1 << 16))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def number(value: int) -> bytes:
    """An integer as a message: 1 is yes, 0 is no or busy."""
    return struct.pack("!I", value)


def outcome(reward: float, done: bool) -> bytes:
    """A step's reward and end as a message; the last byte says that the reward was sent."""
    return struct.pack("!dbb", reward, done, True)


def bottom_row_first(image: np.ndarray) -> bytes:
    """A frame as a message; the image, uint8 [H, W, 3], has the top row first."""
    return np.ascontiguousarray(image[::-1]).tobytes()


def asked_for(info: dict[str, Any], mission: Mission) -> dict[str, Any]:
    """The part of an info that the mission's handlers of observations make, as in Minecraft."""
    return {
        key: value
        for key, value in info.items()
        if key in _ALWAYS or _OF_OBSERVATION.get(key, _OBSERVATIONS[0]) in mission.observes
    }


def parse_mission(xml: str, token: str) -> Mission:
    """A mission from the two messages that begin it.

    Args:
      xml: `<MissionInit>` with the `<Mission>` in it.
      token: uid:role:resets:agents:synchronous, and :seed if there is one; it wins over the mission's `<WorldSeed>`.
    Raises:
      ProtocolError: they are malformed, or the mission is for several agents.
    """
    try:
        mission = ElementTree.fromstring(xml).find(f"{_NAMESPACE}Mission")
        if mission is None:
            raise ProtocolError("the mission's XML has no <Mission>")
        uid, _, _, agents, *rest = token.split(":")
        if agents != "1":
            raise ProtocolError(f"the mission is for {agents} agents: one is served")
        seed = rest[1] if len(rest) > 1 else _text(mission, "WorldSeed")
        width, height = _text(mission, "VideoProducer", "Width"), _text(mission, "VideoProducer", "Height")
        size = (int(height), int(width)) if height and width else None
        if size is not None and not (min(size) > 0 and 3 * size[0] * size[1] <= MAX_MESSAGE_BYTES):
            raise ProtocolError(f"a frame of {width} x {height} pixels cannot be sent")
        limit = mission.find(f".//{_NAMESPACE}ServerQuitFromTimeUp")
        stacks = mission.iter(f"{_NAMESPACE}InventoryObject")
        return Mission(
            uid=uid,
            seed=int(seed) if seed else None,
            size=size,
            biome=_text(mission, "PreferredSpawnBiome"),
            inventory=tuple(Stack(int(s.attrib["slot"]), s.attrib["type"], int(s.get("quantity", 1))) for s in stacks),
            time_limit=-(-int(limit.attrib["timeLimitMs"]) // TICK_MS) if limit is not None else 0,
            done_on_death=_text(mission, "DoneOnDeath") == "true",
            observes=frozenset(o for o in _OBSERVATIONS if mission.find(f".//{_NAMESPACE}{o}") is not None),
        )
    except ElementTree.ParseError as error:
        raise ProtocolError(f"the mission is no XML: {error}") from error
    except (ValueError, KeyError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"the mission or its token {token!r} is malformed: {error!r}") from error


def _text(mission: ElementTree.Element, *path: str) -> str:
    """The text of the first element under this path, anywhere in the mission; "" if there is none."""
    found = mission.find(".//" + "/".join(_NAMESPACE + name for name in path))
    return (found.text or "").strip() if found is not None else ""


def parse_step(message: str) -> tuple[Keys, bool]:
    """Keys of `<StepClient0>forward 1 ...</StepClient0 >`, a command in every line, and whether the info is wanted.

    Besides what `Keys` names there may be "craft", the name of an item. Other words are ignored, as Minecraft does.

    Raises:
      ProtocolError: a number is none.
    """
    if len(message) < 2 * _STEP_TAG + 2:
        raise ProtocolError(f"{message!r} is too short for a step")
    keys: Keys = {**dict.fromkeys(BUTTONS, 0), "camera": np.zeros(2, np.float32)}
    for line in message[_STEP_TAG : -_STEP_TAG - 2].splitlines():
        word, _, value = line.strip().partition(" ")
        try:
            if word in BUTTONS:
                keys[word] = int(float(value) == 1)
            elif word == "camera":
                keys[word] = np.array(_floats(value.split(), 2), np.float32)
            elif word == "voxels":
                keys[word] = [int(x) for x in _floats(value.split(","), 6)]
            elif word == "chat":
                keys[word] = value
            elif word in _CRAFTING and value != "none":
                keys["craft"] = value
        except ValueError as error:
            raise ProtocolError(f"the command {line!r} is malformed: {error}") from error
    return keys, message[_STEP_TAG - 2] in _STEPS_WITH_INFO


def _floats(words: Iterable[str], count: int) -> list[float]:
    values = [float(word) for word in words]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"{values} instead of {count} finite numbers")
    return values
