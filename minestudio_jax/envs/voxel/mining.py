"""Breaking blocks, with vanilla 1.16's times for hand and tools."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items
from minestudio_jax.envs.voxel.raycast import Hit
from minestudio_jax.envs.voxel.state import Breaking

REACH = 4.5  # blocks, from the eye
DELAY_TICKS = 5  # between two blocks, unless the first broke at once
_SWORD_ON_SOFT = 1.5  # leaves and pumpkins


class Mined(NamedTuple):
    """What one tick of attacking did.

    Attributes:
      blocks: uint8 [x, y, z].
      breaking: of the next tick.
      broken: int32 [], the broken block's id; AIR if none.
      harvested: bool [], it drops something: the tool was good enough.
    """

    blocks: jax.Array
    breaking: Breaking
    broken: jax.Array
    harvested: jax.Array


def attack(
    blocks: jax.Array,
    hit: Hit,
    breaking: Breaking,
    attacking: jax.Array,
    held: jax.Array,
    slowed: jax.Array,
    multiplier: float,
) -> Mined:
    """One tick. Progress is lost when the key is released or another block is looked at.

    Per tick a block takes damage speed / hardness / (30 if the tool harvests it, else 100); it breaks at 1.

    Args:
      blocks: uint8 [x, y, z].
      hit: what is looked at, [] each.
      breaking: of the tick before.
      attacking: bool [], the key is down.
      held: int32 [], item in the hand.
      slowed: float32 [], factor on the speed: a fifth in the air, another fifth with the head in water.
      multiplier: on the speed; 1 is Minecraft's.
    """
    _, size_y, size_z = blocks.shape
    target = jnp.stack([hit.cell // (size_y * size_z), hit.cell // size_z % size_y, hit.cell % size_z])
    hardness = jnp.asarray(b.HARDNESS)[hit.block]
    breakable = (hit.block != b.AIR) & (hit.distance <= REACH) & (hardness >= 0)
    attacking = attacking & breakable
    waiting = breaking.delay > 0

    right_tool = (jnp.asarray(b.TOOL)[hit.block] == jnp.asarray(items.TOOL)[held]) & (jnp.asarray(items.TOOL)[held] > 0)
    level = jnp.asarray(b.LEVEL)[hit.block]
    harvests = (level == 0) | (right_tool & (jnp.asarray(items.TIER)[held] >= level))
    soft = (hit.block == b.LEAVES) | (hit.block == b.ID["pumpkin"])
    by_sword = jnp.where((jnp.asarray(items.TOOL)[held] == b.SWORD) & soft, _SWORD_ON_SOFT, 1.0)
    speed = multiplier * slowed * jnp.where(right_tool, jnp.asarray(items.SPEED)[held], by_sword)
    damage = speed / jnp.maximum(hardness, 1e-6) / jnp.where(harvests, 30.0, 100.0)

    same = jnp.all(target == breaking.target)
    progress = jnp.where(same, breaking.progress, 0.0)
    progress = jnp.where(attacking, jnp.where(waiting, 0.0, progress + damage), 0.0)
    # Sums of float32 damages may miss 1 by rounding: 15 times 1/15 is a broken block.
    breaks = attacking & ~waiting & (progress >= 1.0 - 1e-5)
    at = tuple(jnp.where(breaks, target, 0))
    blocks = blocks.at[at].set(jnp.where(breaks, b.AIR, blocks[at]).astype(blocks.dtype))
    delay = jnp.where(breaks & (damage < 1.0), DELAY_TICKS, jnp.maximum(breaking.delay - 1, 0))
    after = Breaking(target=target, progress=jnp.where(breaks, 0.0, progress), delay=delay)
    return Mined(blocks, after, jnp.where(breaks, hit.block, b.AIR), breaks & harvests)
