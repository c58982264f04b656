"""The player's movement: vanilla 1.16's, one tick of 1/20 s at a time.

Constants and order as in prismarine-physics 1.11.1, whose trajectories the tests reproduce.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.state import Player

GRAVITY = 0.08
VERTICAL_DRAG = 0.98
AIR_INERTIA = 0.91
GROUND_INERTIA = 0.6 * 0.91
GROUND_ACCELERATION = 0.1
AIR_ACCELERATION = 0.02
SPRINT_FACTOR = 1.3
SNEAK_FACTOR = 0.3
INPUT_FACTOR = 0.98
JUMP_SPEED = 0.42
SPRINT_JUMP_BOOST = 0.2
JUMP_COOLDOWN = 10
NEGLIGIBLE = 0.003
WATER_INERTIA = 0.8
WATER_ACCELERATION = 0.02
WATER_GRAVITY = 0.02
WATER_JUMP = 0.04
WATER_EXIT_SPEED = 0.3
EYE_HEIGHT = 1.62
SNEAKING_EYE_HEIGHT = 1.27

# Cells around the feet that one tick's motion can touch: falls here stay below 2 blocks a tick.
_NEIGHBOURS = np.stack(np.meshgrid(range(-1, 2), range(-2, 4), range(-1, 2), indexing="ij"), -1).reshape(-1, 3)


class Body(NamedTuple):
    """A box that stands on the middle of its bottom: half its width and its height, blocks."""

    half_width: float
    height: float


PLAYER = Body(0.3, 1.8)


class Controls(NamedTuple):
    """One tick's input.

    Attributes:
      forward, back, left, right, jump, sneak, sprint, attack, use, drop: bool [], keys.
      hotbar: int32 [], slot to select, 0..8; negative: none.
      craft: int32 [], craft action; 0: none.
      pitch, yaw: float32 [], turn of the head, degrees.
    """

    forward: jax.Array
    back: jax.Array
    left: jax.Array
    right: jax.Array
    jump: jax.Array
    sneak: jax.Array
    sprint: jax.Array
    attack: jax.Array
    use: jax.Array
    drop: jax.Array
    hotbar: jax.Array
    craft: jax.Array
    pitch: jax.Array
    yaw: jax.Array


def turn(player: Player, controls: Controls) -> tuple[jax.Array, jax.Array]:
    """Yaw (kept within +-180) and pitch (clipped to +-90) after the tick's turn, degrees."""
    yaw = player.yaw + controls.yaw
    # Not by a remainder, whose rounding would turn a head that is still.
    yaw = jnp.where(yaw >= 180.0, yaw - 360.0, jnp.where(yaw < -180.0, yaw + 360.0, yaw))
    return yaw, jnp.clip(player.pitch + controls.pitch, -90.0, 90.0)


def eye(player: Player) -> jax.Array:
    """Where the player's eyes are, float32 [3]."""
    height = jnp.where(player.sneaking, SNEAKING_EYE_HEIGHT, EYE_HEIGHT)
    return player.position.at[1].add(height)


def block_at(blocks: jax.Array, position: jax.Array) -> jax.Array:
    """Id of the block at a point, int32 []."""
    cell = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, jnp.array(blocks.shape) - 1)
    return blocks[cell[0], cell[1], cell[2]].astype(jnp.int32)


def move(blocks: jax.Array, player: Player, controls: Controls, may_sprint: jax.Array | bool = True) -> Player:
    """The player after one tick of walking, swimming, jumping and falling; the turn has been made."""
    velocity = jnp.where(jnp.abs(player.velocity) < NEGLIGIBLE, 0.0, player.velocity)
    sin, cos = jnp.sin(jnp.radians(player.yaw)), jnp.cos(jnp.radians(player.yaw))
    forward = (controls.forward * 1.0 - controls.back * 1.0) * INPUT_FACTOR
    strafe = (controls.left * 1.0 - controls.right * 1.0) * INPUT_FACTOR
    slow = jnp.where(controls.sneak, SNEAK_FACTOR, 1.0)
    forward, strafe = forward * slow, strafe * slow
    sprinting = (player.sprinting | controls.sprint) & (forward > 0) & ~controls.sneak & may_sprint
    in_water = block_at(blocks, player.position + jnp.array([0.0, 0.4, 0.0])) == b.WATER

    jump_ticks = jnp.where(controls.jump, jnp.maximum(player.jump_ticks - 1, 0), 0)
    jumps = controls.jump & player.on_ground & (jump_ticks == 0) & ~in_water
    boost = jnp.where(jumps & sprinting, SPRINT_JUMP_BOOST, 0.0)
    velocity = velocity + boost * jnp.stack([-sin, jnp.zeros_like(sin), cos])
    velocity = velocity.at[1].set(jnp.where(jumps, JUMP_SPEED, velocity[1]))
    velocity = velocity.at[1].add(jnp.where(controls.jump & in_water, WATER_JUMP, 0.0))
    jump_ticks = jnp.where(jumps, JUMP_COOLDOWN, jump_ticks)

    ground = player.on_ground
    inertia = jnp.where(in_water, WATER_INERTIA, jnp.where(ground, GROUND_INERTIA, AIR_INERTIA))
    on_land = jnp.where(ground, GROUND_ACCELERATION * (0.1627714 / GROUND_INERTIA**3), AIR_ACCELERATION)
    acceleration = jnp.where(in_water, WATER_ACCELERATION, on_land * jnp.where(sprinting, SPRINT_FACTOR, 1.0))
    acceleration = acceleration / jnp.maximum(jnp.hypot(forward, strafe), 1.0)
    velocity = velocity + acceleration * jnp.stack(
        [strafe * cos - forward * sin, jnp.zeros_like(sin), forward * cos + strafe * sin]
    )
    guarded = controls.sneak & ground
    position, moved, hit = collide(blocks, player.position, velocity, PLAYER, guarded)
    on_ground = hit[1] & (velocity[1] < 0)
    velocity = jnp.where(hit, 0.0, jnp.where(guarded & (jnp.array([True, False, True])), moved, velocity))
    velocity = velocity * jnp.stack([inertia, jnp.ones_like(inertia), inertia])
    falling = (velocity[1] - GRAVITY) * VERTICAL_DRAG
    sinking = velocity[1] * WATER_INERTIA - WATER_GRAVITY
    # Pushing against the bank lifts a swimmer out of the water.
    climbing = in_water & (hit[0] | hit[2]) & (controls.jump | (forward > 0))
    sinking = jnp.where(climbing, WATER_EXIT_SPEED, sinking)
    velocity = velocity.at[1].set(jnp.where(in_water, sinking, falling))
    return Player(
        position=position,
        velocity=velocity,
        yaw=player.yaw,
        pitch=player.pitch,
        on_ground=on_ground,
        sprinting=sprinting & ~(hit[0] | hit[2]) & ~in_water,
        sneaking=controls.sneak,
        jump_ticks=jump_ticks,
        fall_distance=jnp.where(in_water | player.on_ground, 0.0, player.fall_distance) + jnp.maximum(-moved[1], 0.0),
    )


def collide(
    blocks: jax.Array, position: jax.Array, motion: jax.Array, body: Body, guarded: jax.Array | bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sweeps a box along y, then x, then z, against the solid cells around it.

    Args:
      position: float32 [3], of the middle of its bottom.
      motion: float32 [3], wanted in this tick.
      body: its size; at most 3 blocks high.
      guarded: bool [], sneaking on the ground: no step that leaves nothing below the box.
    Returns:
      position [3], the motion that was made [3], and along which axes something was hit, bool [3].
    """
    cells = jnp.floor(position).astype(jnp.int32) + _NEIGHBOURS
    clipped = jnp.clip(cells, 0, jnp.array(blocks.shape) - 1)
    solid = jnp.asarray(b.SOLID)[blocks[clipped[:, 0], clipped[:, 1], clipped[:, 2]]]
    low = cells.astype(jnp.float32)
    extent_low = jnp.array([-body.half_width, 0.0, -body.half_width])
    extent_high = jnp.array([body.half_width, body.height, body.half_width])
    slack = 1e-5  # touching is not overlapping, also after rounding

    def sweep(position: jax.Array, axis: int, distance: jax.Array) -> jax.Array:
        box_low, box_high = position + extent_low, position + extent_high
        others = [i for i in range(3) if i != axis]
        overlaps = solid
        for i in others:
            overlaps &= (low[:, i] + 1 > box_low[i] + slack) & (low[:, i] < box_high[i] - slack)
        ahead = low[:, axis] - box_high[axis]
        behind = low[:, axis] + 1 - box_low[axis]
        forward = jnp.min(jnp.where(overlaps & (ahead >= -slack), jnp.maximum(ahead, 0.0), jnp.inf))
        backward = jnp.max(jnp.where(overlaps & (behind <= slack), jnp.minimum(behind, 0.0), -jnp.inf))
        return jnp.clip(distance, backward, forward)

    def supported(position: jax.Array) -> jax.Array:
        return sweep(position, 1, jnp.float32(-0.6)) > -0.6

    moved, hit = [jnp.float32(0)] * 3, [jnp.bool_(False)] * 3
    for axis in (1, 0, 2):
        wanted = motion[axis]
        made = sweep(position, axis, wanted)
        hit[axis] = made != wanted
        if axis != 1:
            safe = supported(position.at[axis].add(made))
            made = jnp.where(guarded & ~safe, 0.0, made)
        position = position.at[axis].add(made)
        moved[axis] = made
    return position, jnp.stack(moved), jnp.stack(hit)
