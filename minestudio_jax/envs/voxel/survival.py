"""Health, hunger and breath: vanilla 1.16's rules on normal difficulty, one tick at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items, physics
from minestudio_jax.envs.voxel.state import Player, Vitals

FULL = 20
FULL_AIR = 300  # ticks
HURT_TICKS = 10
FALL_WITHOUT_HARM = 3.0  # blocks
DROWNING_DAMAGE = 2.0
_EXHAUSTION_LIMIT = 4.0
_SPRINT_EXHAUSTION = 0.1  # per block
_JUMP_EXHAUSTION, _SPRINT_JUMP_EXHAUSTION = 0.05, 0.2
_HEAL_EXHAUSTION = 6.0
_HEAL_FOOD = 18  # from which on wounds heal
_SPRINT_FOOD = 6  # above which one can sprint
_SLOW_TICKS, _FAST_TICKS = 80, 10  # between two half hearts; fast with full food and saturation


def healthy() -> Vitals:
    """As one is born."""
    return Vitals(
        health=jnp.float32(FULL),
        food=jnp.int32(FULL),
        saturation=jnp.float32(5.0),
        exhaustion=jnp.float32(0.0),
        air=jnp.int32(FULL_AIR),
        hurt_ticks=jnp.int32(0),
        heal_ticks=jnp.int32(0),
    )


def may_sprint(vitals: Vitals) -> jax.Array:
    """bool []."""
    return vitals.food > _SPRINT_FOOD


def hurt(vitals: Vitals, damage: jax.Array) -> tuple[Vitals, jax.Array]:
    """Takes damage, unless the last is too fresh.

    Args:
      damage: float32 [], half hearts; 0 changes nothing.
    Returns:
      The vitals and the damage that counted, float32 [].
    """
    counts = (damage > 0) & (vitals.hurt_ticks <= 0)
    taken = jnp.where(counts, jnp.minimum(damage, vitals.health), 0.0)
    after = dataclasses.replace(
        vitals,
        health=vitals.health - taken,
        hurt_ticks=jnp.where(counts, HURT_TICKS, vitals.hurt_ticks),
        exhaustion=vitals.exhaustion + jnp.where(counts, 0.1, 0.0),
    )
    return after, taken


def fall_damage(before: Player, after: Player) -> jax.Array:
    """Half hearts that landing in this tick costs: one for every block beyond three. float32 []."""
    lands = after.on_ground & ~before.on_ground
    # The sum of a fall's ticks may miss whole blocks by rounding.
    return jnp.where(lands, jnp.maximum(jnp.ceil(after.fall_distance - FALL_WITHOUT_HARM - 1e-3), 0.0), 0.0)


def eat(vitals: Vitals, item: jax.Array, eaten: jax.Array) -> Vitals:
    """Fills food and saturation with an item, where `eaten`, bool []."""
    food = jnp.minimum(vitals.food + jnp.asarray(items.FOOD)[item], FULL)
    saturation = jnp.minimum(vitals.saturation + jnp.asarray(items.SATURATION)[item], food.astype(jnp.float32))
    return dataclasses.replace(
        vitals,
        food=jnp.where(eaten, food, vitals.food),
        saturation=jnp.where(eaten, saturation, vitals.saturation),
    )


def breathe(blocks: jax.Array, player: Player, vitals: Vitals) -> tuple[Vitals, jax.Array]:
    """Breath under water, and the damage of drowning, float32 [], once a second when it is used up."""
    under = physics.block_at(blocks, physics.eye(player)) == b.WATER
    air = jnp.where(under, vitals.air - 1, jnp.minimum(vitals.air + 4, FULL_AIR))
    drowns = air <= -20
    return dataclasses.replace(vitals, air=jnp.where(drowns, 0, air)), jnp.where(drowns, DROWNING_DAMAGE, 0.0)


def hunger(vitals: Vitals, before: Player, after: Player, jumped: jax.Array) -> tuple[Vitals, jax.Array]:
    """Tires by moving, heals when fed, starves when not; the dead do not heal.

    Returns:
      The vitals, and the damage of starving, float32 [].
    """
    moved = after.position - before.position
    blocks = jnp.hypot(moved[0], moved[2])
    tired = jnp.where(after.sprinting, _SPRINT_EXHAUSTION * blocks, 0.0)
    tired += jnp.where(jumped, jnp.where(after.sprinting, _SPRINT_JUMP_EXHAUSTION, _JUMP_EXHAUSTION), 0.0)
    exhaustion = vitals.exhaustion + tired

    wounded = (vitals.health > 0) & (vitals.health < FULL)
    fast = wounded & (vitals.food >= FULL) & (vitals.saturation > 0)
    slow = wounded & (vitals.food >= _HEAL_FOOD)
    starving = vitals.food <= 0
    ticks = jnp.where(fast | slow | starving, vitals.heal_ticks + 1, 0)
    due = ticks >= jnp.where(fast, _FAST_TICKS, _SLOW_TICKS)
    heals = due & (fast | slow)
    healed = jnp.where(heals, jnp.where(fast, jnp.minimum(vitals.saturation, 6.0) / 6.0, 1.0), 0.0)
    exhaustion += healed * _HEAL_EXHAUSTION

    spent = exhaustion > _EXHAUSTION_LIMIT
    exhaustion = jnp.where(spent, exhaustion - _EXHAUSTION_LIMIT, exhaustion)
    hungrier = spent & (vitals.saturation <= 0)
    after_vitals = dataclasses.replace(
        vitals,
        health=jnp.minimum(vitals.health + healed, FULL),
        exhaustion=exhaustion,
        saturation=jnp.where(spent, jnp.maximum(vitals.saturation - 1.0, 0.0), vitals.saturation),
        food=jnp.where(hungrier, jnp.maximum(vitals.food - 1, 0), vitals.food),
        heal_ticks=jnp.where(due, 0, ticks),
    )
    # On normal difficulty hunger alone leaves half a heart.
    return after_vitals, jnp.where(due & starving & (vitals.health > 1.0), 1.0, 0.0)
