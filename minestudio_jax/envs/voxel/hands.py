"""What the player's hands do: hit mobs, place blocks, eat, throw away."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minestudio_jax.envs.tasks import TICKS_PER_S
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items, mining, mobs, physics, survival
from minestudio_jax.envs.voxel.inventory import Inventory
from minestudio_jax.envs.voxel.raycast import Hit, box_distance
from minestudio_jax.envs.voxel.state import Hands, Mobs, Player, Vitals

Direction = tuple[jax.Array, jax.Array, jax.Array]  # unit vector, float32 [] each

MOB_REACH = 3.0  # blocks, from the eye
PLACE_PAUSE_TICKS = 4  # between two blocks while the key is held
EAT_TICKS = 32
MISS_TICKS = 10
THROW_SPEED = 0.3  # blocks per tick
_CRITICAL = 1.5  # factor on the damage of a hit while falling


def resting() -> Hands:
    """Hands that have done nothing yet."""
    return Hands(
        attack_was_down=jnp.bool_(False),
        drop_was_down=jnp.bool_(False),
        use_delay=jnp.int32(0),
        eat_ticks=jnp.int32(0),
        swing_ticks=jnp.int32(100),
        miss_ticks=jnp.int32(0),
    )


class Struck(NamedTuple):
    """One tick's attack on mobs.

    Attributes:
      mobs: after it.
      swings: bool [], the hands hit out at something else than a block.
      damage: float32 [], dealt.
      killed: int32 [], kind of the mob that died; 0 is none.
      at: float32 [3], where it stood.
    """

    mobs: Mobs
    swings: jax.Array
    damage: jax.Array
    killed: jax.Array
    at: jax.Array


def strike(
    player: Player, look: Direction, sight: Hit, mobs_: Mobs, held: jax.Array, hands: Hands,
    attacking: jax.Array, edge: bool,
) -> Struck:  # fmt: skip
    """Hits the nearest mob in the line of sight, or one that the eye is inside of, if no block is nearer.

    Args:
      look: unit vector of the view, three float32 [].
      sight: the block that is looked at.
      held: int32 [], item in the hand.
      attacking: bool [], the key is down.
      edge: it must have gone down in this tick.
    """
    low, high = mobs.boxes(mobs_)
    eye = physics.eye(player)
    distance, _ = jax.vmap(lambda a, c: box_distance(eye, *look, a, c))(low, high)
    distance = jnp.where(((low <= eye) & (eye <= high)).all(axis=-1), 0.0, distance)
    distance = jnp.where(mobs_.kind > 0, distance, jnp.inf)
    nearest = jnp.argmin(distance)
    in_reach = (distance[nearest] <= MOB_REACH) & (distance[nearest] < sight.distance)
    goes_down = attacking & ~hands.attack_was_down if edge else attacking
    swings = goes_down & in_reach

    pause = TICKS_PER_S / jnp.asarray(items.HITS_PER_S)[held]
    strength = jnp.clip((hands.swing_ticks + 0.5) / pause, 0.0, 1.0)
    damage = jnp.asarray(items.DAMAGE)[held] * (0.2 + 0.8 * strength**2)
    falling = (player.fall_distance > 0) & ~player.on_ground & (strength > 0.9)
    damage = damage * jnp.where(falling, _CRITICAL, 1.0)
    after, dealt, killed = mobs.hurt(mobs_, jnp.where(swings, nearest, -1), damage, player.position)
    return Struck(after, swings, dealt, killed, mobs_.position[nearest])


def after_attacking(hands: Hands, sight: Hit, attack: jax.Array, swings: jax.Array, edge: bool) -> Hands:
    """What the hands remember of a tick's attack.

    Args:
      sight: the block that is looked at.
      attack: bool [], the key is down.
      swings: bool [], a mob was hit.
      edge: a blow into the air has its price.
    """
    misses = attack & ~hands.attack_was_down & ~swings & (sight.distance > mining.REACH) & edge
    miss_ticks = jnp.where(attack, jnp.maximum(hands.miss_ticks - 1, 0), 0)
    return dataclasses.replace(
        hands,
        attack_was_down=attack,
        swing_ticks=jnp.where(swings | misses, 0, hands.swing_ticks + 1),
        miss_ticks=jnp.where(misses, MISS_TICKS, miss_ticks),
    )


class Thrown(NamedTuple):
    """One tick of the key that throws away.

    Attributes:
      inventory, hands: after it.
      item: int32 [], thrown; NONE if nothing.
      position, velocity: float32 [3], of the item.
    """

    inventory: Inventory
    hands: Hands
    item: jax.Array
    position: jax.Array
    velocity: jax.Array


def throw(player: Player, look: Direction, inventory: Inventory, hands: Hands, down: jax.Array) -> Thrown:
    """Throws one of the items in the hand away when the key goes down; tools, which wear, stay in the hand."""
    held = inventory.held
    throws = down & ~hands.drop_was_down & (held != items.NONE) & (jnp.asarray(items.DURABILITY)[held] == 0)
    return Thrown(
        inv.remove_held(inventory, throws),
        dataclasses.replace(hands, drop_was_down=down),
        jnp.where(throws, held, items.NONE),
        physics.eye(player) - jnp.array([0.0, 0.3, 0.0]),
        THROW_SPEED * jnp.stack(look) + jnp.array([0.0, 0.1, 0.0]),
    )


class Used(NamedTuple):
    """One tick of the use key.

    Attributes:
      blocks, inventory, vitals, hands: after it.
      item: int32 [], what was used up: placed or eaten; NONE if nothing.
      places, cell: bool [] and int32 [3], whether a block was placed, and where.
    """

    blocks: jax.Array
    inventory: Inventory
    vitals: Vitals
    hands: Hands
    item: jax.Array
    places: jax.Array
    cell: jax.Array


def use(
    blocks: jax.Array, player: Player, look: Direction, sight: Hit, inventory: Inventory, vitals: Vitals,
    hands: Hands, using: jax.Array,
) -> Used:  # fmt: skip
    """Places the block in the hand against the face that is looked at, or eats the food in it."""
    held = inventory.held
    block = jnp.asarray(items.PLACES)[held]
    _, size_y, size_z = blocks.shape
    target = jnp.stack([sight.cell // (size_y * size_z), sight.cell // size_z % size_y, sight.cell % size_z])
    # The face that is hit looks back along the ray.
    towards = jnp.stack([-jnp.sign(d) for d in look]) * (jnp.arange(3) == sight.axis)
    cell = target + towards.astype(jnp.int32)
    there = blocks[cell[0], cell[1], cell[2]]
    free = (there == b.AIR) | (there == b.WATER)
    body_low = player.position - jnp.array([physics.PLAYER.half_width, 0.0, physics.PLAYER.half_width])
    body_high = body_low + jnp.array(
        [2 * physics.PLAYER.half_width, physics.PLAYER.height, 2 * physics.PLAYER.half_width]
    )
    clear = ((cell + 1 <= body_low + 1e-4) | (cell >= body_high - 1e-4)).any()
    in_reach = (sight.block != b.AIR) & (sight.block != b.BARRIER) & (sight.distance <= mining.REACH)
    delay = jnp.maximum(hands.use_delay - 1, 0)
    places = using & (delay <= 0) & (block != b.AIR) & in_reach & free & clear
    at = tuple(jnp.where(places, cell, 0))
    blocks = blocks.at[at].set(jnp.where(places, block, blocks[at]).astype(blocks.dtype))

    eating = using & (jnp.asarray(items.FOOD)[held] > 0) & (vitals.food < survival.FULL)
    eat_ticks = jnp.where(eating, hands.eat_ticks + 1, 0)
    eaten = eat_ticks >= EAT_TICKS
    return Used(
        blocks,
        inv.remove_held(inventory, places | eaten),
        survival.eat(vitals, held, eaten),
        dataclasses.replace(
            hands,
            use_delay=jnp.where(places, PLACE_PAUSE_TICKS, delay * using),
            eat_ticks=jnp.where(eaten, 0, eat_ticks),
        ),
        jnp.where(places | eaten, held, items.NONE),
        places,
        cell,
    )
