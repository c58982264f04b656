"""Breaking blocks by hand, with vanilla 1.16's times."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics
from minestudio_jax.envs.voxel.raycast import cast, look_direction
from minestudio_jax.envs.voxel.state import Breaking, Player

REACH = 4.5  # blocks, from the eye
DELAY_TICKS = 5  # between two blocks, unless the first broke at once
_CROSSINGS = 16  # a ray of 4.5 blocks crosses fewer borders than this


class Mined(NamedTuple):
    """What one tick of attacking did: blocks uint8 [x, y, z], breaking, and the broken block's id (AIR if none)."""

    blocks: jax.Array
    breaking: Breaking
    broken: jax.Array


def attack(
    blocks: jax.Array, player: Player, breaking: Breaking, controls: physics.Controls, multiplier: float
) -> Mined:
    """One tick. Progress is lost when the key is released or another block is looked at.

    Per tick a block takes damage speed / hardness / (30 if it can be harvested, else 100), a fifth of it while
    the player is in the air; it breaks at 1.
    """
    eye_height = jnp.where(controls.sneak, physics.SNEAKING_EYE_HEIGHT, physics.EYE_HEIGHT)
    eye = player.position + eye_height * jnp.array([0.0, 1.0, 0.0])
    dx, dy, dz = look_direction(player.yaw, player.pitch)
    hit = cast(blocks, eye, dx, dy, dz, _CROSSINGS)
    _, size_y, size_z = blocks.shape
    target = jnp.stack([hit.cell // (size_y * size_z), hit.cell // size_z % size_y, hit.cell % size_z])
    hardness = jnp.asarray(b.HARDNESS)[hit.block]
    breakable = (hit.block != b.AIR) & (hit.distance <= REACH) & (hardness >= 0)
    attacking = controls.attack & breakable
    waiting = breaking.delay > 0

    speed = multiplier * jnp.where(player.on_ground, 1.0, 0.2)
    divisor = jnp.where(jnp.asarray(b.HARVESTED_BY_HAND)[hit.block], 30.0, 100.0)
    damage = speed / jnp.maximum(hardness, 1e-6) / divisor
    same = jnp.all(target == breaking.target)
    progress = jnp.where(same, breaking.progress, 0.0)
    progress = jnp.where(attacking, jnp.where(waiting, 0.0, progress + damage), 0.0)
    # Sums of float32 damages may miss 1 by rounding: 15 times 1/15 is a broken block.
    breaks = attacking & ~waiting & (progress >= 1.0 - 1e-5)
    at = tuple(jnp.where(breaks, target, 0))
    blocks = blocks.at[at].set(jnp.where(breaks, b.AIR, blocks[at]).astype(blocks.dtype))
    delay = jnp.where(breaks & (damage < 1.0), DELAY_TICKS, jnp.maximum(breaking.delay - 1, 0))
    after = Breaking(target=target, progress=jnp.where(breaks, 0.0, progress), delay=delay)
    return Mined(blocks, after, jnp.where(breaks, hit.block, b.AIR))
