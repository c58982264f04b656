"""Items that lie about: dropped, falling, picked up."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items, physics
from minestudio_jax.envs.voxel.inventory import Inventory
from minestudio_jax.envs.voxel.state import Drops, Player, Statistics
from minestudio_jax.envs.voxel.statistics import counted

BODY = physics.Body(0.125, 0.25)
PICKUP_DELAY_TICKS = 10
THROWN_DELAY_TICKS = 40
LIFETIME_TICKS = 6000
_GRAVITY, _DRAG = 0.04, 0.98
_REACH_ASIDE, _REACH_UP = 1.0, 0.5  # by which the player's box is larger for picking up


def none(slots: int) -> Drops:
    """`slots` empty slots."""
    zeros = jnp.zeros(slots, jnp.int32)
    return Drops(zeros, zeros, jnp.zeros((slots, 3), jnp.float32), jnp.zeros((slots, 3), jnp.float32), zeros)


def drop(key: jax.Array, drops: Drops, item: jax.Array, count: jax.Array, position: jax.Array) -> Drops:
    """Lays items down at a point, float32 [3], with a small push aside; see `throw`."""
    push = jax.random.uniform(key, (2,), minval=-0.05, maxval=0.05)
    return throw(drops, item, count, position, jnp.stack([push[0], jnp.float32(0.15), push[1]]))


def throw(
    drops: Drops, item: jax.Array, count: jax.Array, position: jax.Array, velocity: jax.Array, delay: int = 0
) -> Drops:
    """Puts items into the air; if all slots are taken, the oldest make room.

    Args:
      item, count: int32 []; a count of 0 changes nothing.
      position, velocity: float32 [3].
      delay: ticks by which they can be picked up later than others.
    """
    priority = jnp.where(drops.item == items.NONE, LIFETIME_TICKS + 1, drops.age)
    into = (jnp.arange(drops.item.shape[0]) == jnp.argmax(priority)) & (count > 0) & (item != items.NONE)
    return Drops(
        item=jnp.where(into, item, drops.item),
        count=jnp.where(into, count, drops.count),
        position=jnp.where(into[:, None], position, drops.position),
        velocity=jnp.where(into[:, None], velocity, drops.velocity),
        age=jnp.where(into, -delay, drops.age),
    )


def move(blocks: jax.Array, drops: Drops) -> Drops:
    """One tick of falling and ageing."""

    def one(position: jax.Array, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
        velocity = velocity.at[1].add(-_GRAVITY)
        position, moved, hit = physics.collide(blocks, position, velocity, BODY)
        inertia = jnp.where(hit[1], physics.GROUND_INERTIA, _DRAG)
        return position, moved * jnp.stack([inertia, jnp.float32(_DRAG), inertia])

    there = drops.item != items.NONE
    position, velocity = jax.vmap(one)(drops.position, drops.velocity)
    stays = there & (drops.age < LIFETIME_TICKS)
    return Drops(
        item=jnp.where(stays, drops.item, items.NONE),
        count=jnp.where(stays, drops.count, 0),
        position=jnp.where(there[:, None], position, drops.position),
        velocity=jnp.where(there[:, None], velocity, drops.velocity),
        age=drops.age + there,
    )


def pick_up(
    drops: Drops, player: Player, inventory: Inventory, statistics: Statistics
) -> tuple[Drops, Inventory, Statistics]:
    """Takes what the player touches, one slot a tick, as far as there is room for it."""
    away = jnp.abs(drops.position - player.position - jnp.array([0.0, physics.PLAYER.height / 2, 0.0]))
    aside = physics.PLAYER.half_width + _REACH_ASIDE + BODY.half_width
    upwards = physics.PLAYER.height / 2 + _REACH_UP + BODY.height / 2
    touched = (away[:, 0] < aside) & (away[:, 2] < aside) & (away[:, 1] < upwards)
    ready = touched & (drops.item != items.NONE) & (drops.age >= PICKUP_DELAY_TICKS)
    slot = jnp.argmax(ready)
    count = jnp.where(ready[slot], drops.count[slot], 0)
    item = drops.item[slot]
    inventory, taken = inv.add(inventory, item, count)
    left = drops.count - jnp.where(jnp.arange(drops.item.shape[0]) == slot, taken, 0)
    drops = dataclasses.replace(drops, count=left, item=jnp.where(left > 0, drops.item, items.NONE))
    return drops, inventory, counted(statistics, "pickup", item, taken)
