"""What stands in a world beside its blocks, as painted boxes: three for a mob, one for an item that lies about."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import items, mobs
from minestudio_jax.envs.voxel.drops import BODY
from minestudio_jax.envs.voxel.state import State

PICTURE_SIZE = 8
_CONTRAST = 0.12
_PARTS = 3  # of a mob: legs, body, head
_EYES = (30.0, 30.0, 30.0)
# Which of them stand on two legs: their head is on top instead of in front.
_UPRIGHT = np.array([kind.name == "zombie" for kind in mobs.KINDS])
_HEAD_OUT = 0.55  # blocks from the middle to the head of a four-legged animal
_HEAD_SIZE = 0.25  # half a head's side


class Boxes(NamedTuple):
    """K boxes; one that is not there is far below the world.

    Attributes:
      low, high: float32 [K, 3], corners.
      picture: int32 [K], index into `pictures`.
      hurt: bool [K], shown in red.
    """

    low: jax.Array
    high: jax.Array
    picture: jax.Array
    hurt: jax.Array


def boxes_of(state: State) -> Boxes | None:
    """All boxes of a world; None if it can have none."""
    parts = []
    if state.mobs.kind.shape[0]:
        parts.append(_of_mobs(state))
    if state.drops.item.shape[0]:
        parts.append(_of_drops(state))
    if not parts:
        return None
    return Boxes(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _of_mobs(state: State) -> Boxes:
    creatures = state.mobs
    low, high = mobs.boxes(creatures)
    upright = jnp.asarray(_UPRIGHT)[creatures.kind][:, None]
    height = (high - low)[:, 1:2]
    middle = (low + high) / 2
    half = (high - low) / 2
    heading = jnp.radians(creatures.yaw)
    forward = jnp.stack([-jnp.sin(heading), jnp.zeros_like(heading), jnp.cos(heading)], -1)
    up = jnp.array([0.0, 1.0, 0.0])
    aside = jnp.array([1.0, 0.0, 1.0])

    legs_end, body_end = 0.4 * height, jnp.where(upright, 0.76, 1.0) * height
    # Legs stand in a little.
    legs_low = low + 0.15 * half * aside
    legs_high = high - 0.15 * half * aside
    legs_high = legs_high * aside + (low[:, 1:2] + legs_end) * up
    body_low = low * aside + (low[:, 1:2] + legs_end) * up
    body_high = high * aside + (low[:, 1:2] + body_end) * up
    head_middle = middle * aside + jnp.where(upright, 0.0, _HEAD_OUT) * forward
    head_middle = head_middle + (low[:, 1:2] + jnp.where(upright, 0.88, 0.85) * height) * up
    head_low, head_high = head_middle - _HEAD_SIZE, head_middle + _HEAD_SIZE

    pictures_of = [_PARTS * creatures.kind + part for part in range(_PARTS)]
    hurt = [mobs.shown_hurt(creatures)] * _PARTS
    there = (creatures.kind > 0)[:, None]
    lows = [jnp.where(there, x, -1e6) for x in (legs_low, body_low, head_low)]
    highs = [jnp.where(there, x, -1e6) for x in (legs_high, body_high, head_high)]
    return Boxes(*(jnp.concatenate(parts) for parts in (lows, highs, pictures_of, hurt)))


def _of_drops(state: State) -> Boxes:
    drops = state.drops
    half = jnp.array([BODY.half_width, 0.0, BODY.half_width])
    there = (drops.item != items.NONE)[:, None]
    low = drops.position - half
    high = drops.position + half + jnp.array([0.0, BODY.height, 0.0])
    picture = _PARTS * len(mobs.KINDS) + drops.item
    return Boxes(jnp.where(there, low, -1e6), jnp.where(there, high, -1e6), picture, jnp.zeros(picture.shape, bool))


def pictures() -> np.ndarray:
    """What is painted on every face of a box: float32 [pictures, 8, 8, 3], 0..255. Row 0 is the upper edge.

    First legs, body and head of every kind of mob, then the items.
    """
    painted = []
    for kind in mobs.KINDS:
        painted += [kind.legs, kind.colour, kind.head]
    colours = np.array([*painted, *items.COLOUR], np.float32)
    noise = 1 + _CONTRAST * np.random.default_rng(11).uniform(-1, 1, (len(colours), PICTURE_SIZE, PICTURE_SIZE, 1))
    all_ = colours[:, None, None] * noise.astype(np.float32)
    for number, kind in enumerate(mobs.KINDS):
        body, head = all_[_PARTS * number + 1], all_[_PARTS * number + 2]
        if kind.patches is not None:
            body[1:4, 1:4] = body[4:7, 4:8] = kind.patches
        head[3, 1:3] = head[3, 5:7] = _EYES
        if kind.snout is not None:
            head[4:7, 2:6] = kind.snout
    return np.clip(all_, 0, 255)
