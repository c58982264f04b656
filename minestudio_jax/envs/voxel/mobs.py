"""Animals and zombies: how they walk, flee, hunt, are hit and die. One tick of 1/20 s at a time.

Sizes, health and damage are vanilla 1.16's; the behaviour is a simple one: stroll about, run from a hit, hunt the
player.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.tasks import MobGroup
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items, physics
from minestudio_jax.envs.voxel.state import Mobs, Player


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
      name: Minecraft's.
      body: its box.
      health: half hearts.
      speed: blocks per tick while it strolls.
      hunts: it goes for the player and hits him.
      damage: of its hit, half hearts.
      burns: under the open sky by day.
      panic: factor on its speed while it runs away.
      drops: item name -> least and greatest count.
      colour, head, legs: of its picture.
      patches: colour of the patches on its body; None: it has none.
      snout: colour of its snout or muzzle; None: it shows none.
    """

    name: str
    body: physics.Body
    health: float
    speed: float
    hunts: bool = False
    damage: float = 0.0
    burns: bool = False
    panic: float = 1.0
    drops: tuple[tuple[str, int, int], ...] = ()
    colour: tuple[int, int, int] = (0, 0, 0)
    head: tuple[int, int, int] = (0, 0, 0)
    legs: tuple[int, int, int] = (0, 0, 0)
    patches: tuple[int, int, int] | None = None
    snout: tuple[int, int, int] | None = None


def _ground_speed(attribute: float) -> float:
    """Blocks per tick that Minecraft's attribute of movement speed comes to."""
    return attribute**2 / 0.454


KINDS = (
    Kind("none", physics.Body(0.0, 0.0), 0.0, 0.0),
    Kind("cow", physics.Body(0.45, 1.4), 10.0, _ground_speed(0.2), panic=2.0,
         drops=(("beef", 1, 3), ("leather", 0, 2)), colour=(68, 50, 40), head=(90, 68, 55),
         legs=(60, 45, 36), patches=(200, 196, 190), snout=(190, 170, 165)),
    Kind("sheep", physics.Body(0.45, 1.3), 8.0, _ground_speed(0.23), panic=1.25,
         drops=(("white_wool", 1, 1), ("mutton", 1, 2)), colour=(228, 228, 228), head=(190, 160, 140),
         legs=(180, 150, 130)),
    Kind("pig", physics.Body(0.45, 0.9), 10.0, _ground_speed(0.25), panic=1.25,
         drops=(("porkchop", 1, 3),), colour=(240, 160, 160), head=(245, 175, 175),
         legs=(225, 145, 145), snout=(215, 120, 120)),
    Kind("zombie", physics.Body(0.3, 1.95), 20.0, _ground_speed(0.23), hunts=True, damage=3.0, burns=True,
         drops=(("rotten_flesh", 0, 2),), colour=(20, 120, 130), head=(75, 130, 60),
         legs=(65, 58, 130)),
)  # fmt: skip

NAMES = tuple(kind.name for kind in KINDS)
ID = {name: number for number, name in enumerate(NAMES)}
MAX_DROPS = 2  # kinds of items a mob drops

_HALF_WIDTH = np.array([k.body.half_width for k in KINDS], np.float32)
_HEIGHT = np.array([k.body.height for k in KINDS], np.float32)
_HEALTH = np.array([k.health for k in KINDS], np.float32)
_SPEED = np.array([k.speed for k in KINDS], np.float32)
_HUNTS = np.array([k.hunts for k in KINDS])
_DAMAGE = np.array([k.damage for k in KINDS], np.float32)
_PANIC = np.array([k.panic for k in KINDS], np.float32)
_BURNS = np.array([k.burns for k in KINDS])


def _drop_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    item, least, most = (np.zeros((len(KINDS), MAX_DROPS), np.int32) for _ in range(3))
    for number, kind in enumerate(KINDS):
        for slot, (name, low, high) in enumerate(kind.drops):
            item[number, slot], least[number, slot], most[number, slot] = items.ID[name], low, high
    return item, least, most


DROP_ITEM, DROP_LEAST, DROP_MOST = _drop_tables()

STROLL_CHANCE = 1 / 120  # per tick
STROLL_TICKS = 60
PANIC_TICKS = 100
HURT_TICKS = 10  # in which nothing else hurts
SIGHT = 35.0  # blocks
NEAREST = 4.0  # blocks, from a mob to the player at first
HIT_REACH = 1.2  # blocks, between the middles of two bodies along the ground, beyond which a zombie does not hit
HIT_PAUSE_TICKS = 20
KNOCKBACK = 0.4
DUSK = 13000  # ticks since dawn, until which the sun burns
BURN_TICKS = 20
_TURN_DEG = 30.0  # per tick at most


class Bite(NamedTuple):
    """What the mobs do to the player in a tick: damage float32 [], and where from, float32 [3]."""

    damage: jax.Array
    origin: jax.Array


def boxes(mobs: Mobs) -> tuple[jax.Array, jax.Array]:
    """Lower and upper corners of all bodies, float32 [M, 3]; an empty slot's box is empty."""
    half = jnp.asarray(_HALF_WIDTH)[mobs.kind][:, None] * jnp.array([1.0, 0.0, 1.0])
    up = jnp.asarray(_HEIGHT)[mobs.kind][:, None] * jnp.array([0.0, 1.0, 0.0])
    return mobs.position - half, mobs.position + half + up


def spawn(key: jax.Array, blocks: jax.Array, ground: jax.Array, around: jax.Array, groups: Sequence[MobGroup]) -> Mobs:
    """Mobs on the ground, each at a random place near the player but not on top of him.

    Args:
      ground: int32 [x, z], height of the highest ground block.
      around: float32 [3], the player's position.
      groups: what there is to be.
    """
    kind = np.array([ID[group.name] for group in groups for _ in range(group.number)], np.int32)
    farthest = np.array([group.range for group in groups for _ in range(group.number)], np.float32)
    count = len(kind)
    keys = jax.random.split(key, 3)
    angle = jax.random.uniform(keys[0], (count,), maxval=2 * jnp.pi)
    distance = jax.random.uniform(keys[1], (count,), minval=NEAREST, maxval=farthest)
    size = blocks.shape[0]
    x = _between_walls(around[0], distance * jnp.cos(angle), size)
    z = _between_walls(around[2], distance * jnp.sin(angle), size)
    y = ground[x.astype(jnp.int32), z.astype(jnp.int32)] + 1.0
    nothing = jnp.zeros(count, jnp.int32)
    return Mobs(
        kind=jnp.asarray(kind),
        position=jnp.stack([x + 0.5, y, z + 0.5], -1).astype(jnp.float32),
        velocity=jnp.zeros((count, 3), jnp.float32),
        yaw=jax.random.uniform(keys[2], (count,), minval=-180.0, maxval=180.0),
        health=jnp.asarray(_HEALTH)[kind],
        on_ground=jnp.ones(count, bool),
        hurt_ticks=nothing,
        burn_ticks=nothing,
        panic_ticks=nothing,
        walk_ticks=nothing,
        attack_ticks=nothing,
    )


def _between_walls(middle: jax.Array, offset: jax.Array, size: int) -> jax.Array:
    """Cells `offset` [M] away from `middle` [] along an axis; on the side with more room instead of beyond a wall."""
    low, high = 3, size - 4
    cell = jnp.floor(middle + offset)
    roomy = jnp.floor(middle + jnp.where(middle < size / 2, 1, -1) * jnp.abs(offset))
    return jnp.clip(jnp.where((cell < low) | (cell > high), roomy, cell), low, high)


def move(key: jax.Array, blocks: jax.Array, player: Player, mobs: Mobs) -> tuple[Mobs, Bite]:
    """One tick of all mobs."""
    count = mobs.kind.shape[0]
    chance, angle = jax.random.uniform(key, (2, count))
    alive = mobs.kind > 0
    to_player = player.position - mobs.position
    distance = jnp.hypot(to_player[:, 0], to_player[:, 2])
    hunting = alive & jnp.asarray(_HUNTS)[mobs.kind] & (distance < SIGHT)

    strolls = alive & ~hunting & (mobs.walk_ticks <= 0) & (chance < STROLL_CHANCE)
    panics = mobs.panic_ticks > 0
    turns = strolls | (panics & (mobs.panic_ticks % 20 == 0))
    wanted = jnp.where(turns, 360.0 * angle - 180.0, mobs.yaw)
    wanted = jnp.where(hunting, jnp.degrees(jnp.arctan2(-to_player[:, 0], to_player[:, 2])), wanted)
    turn = (wanted - mobs.yaw + 180.0) % 360.0 - 180.0
    yaw = mobs.yaw + jnp.where(turns, turn, jnp.clip(turn, -_TURN_DEG, _TURN_DEG))
    walk_ticks = jnp.where(strolls, STROLL_TICKS, jnp.maximum(mobs.walk_ticks - 1, 0))

    close = hunting & (distance < HIT_REACH) & (jnp.abs(to_player[:, 1]) < 2.0)
    walking = alive & (hunting | panics | (walk_ticks > 0)) & ~close
    speed = jnp.asarray(_SPEED)[mobs.kind] * jnp.where(panics, jnp.asarray(_PANIC)[mobs.kind], 1.0)
    heading = jnp.stack([-jnp.sin(jnp.radians(yaw)), jnp.zeros_like(yaw), jnp.cos(jnp.radians(yaw))], -1)
    mobs = dataclasses.replace(mobs, yaw=yaw, walk_ticks=walk_ticks)
    position, velocity, on_ground = _walk(blocks, mobs, heading, walking * speed)

    bites = close & (mobs.attack_ticks <= 0)
    biter = jnp.argmax(jnp.where(bites, jnp.asarray(_DAMAGE)[mobs.kind], 0.0))
    damage = jnp.max(jnp.where(bites, jnp.asarray(_DAMAGE)[mobs.kind], 0.0))
    after = dataclasses.replace(
        mobs,
        position=jnp.where(alive[:, None], position, mobs.position),
        velocity=velocity,
        on_ground=on_ground,
        hurt_ticks=jnp.maximum(mobs.hurt_ticks - 1, 0),
        burn_ticks=jnp.maximum(mobs.burn_ticks - 1, 0),
        panic_ticks=jnp.maximum(mobs.panic_ticks - 1, 0),
        attack_ticks=jnp.where(bites, HIT_PAUSE_TICKS, jnp.maximum(mobs.attack_ticks - 1, 0)),
    )
    return after, Bite(damage, mobs.position[biter])


def burn(blocks: jax.Array, mobs: Mobs, time: jax.Array) -> Mobs:
    """The sun's harm to those it burns: half a heart a second, by day and under the open sky.

    The second is the mob's own, since the time of day may stand still. Blows count all the while.

    Args:
      time: int32 [], ticks since dawn.
    """
    cells = jnp.floor(mobs.position).astype(jnp.int32)
    cells = jnp.clip(cells, 0, jnp.array(blocks.shape) - 1)
    columns = blocks[cells[:, 0], :, cells[:, 2]]
    above = jnp.arange(blocks.shape[1]) > cells[:, 1:2]
    covered = (above & (columns != b.AIR) & (columns != b.BARRIER)).any(axis=1)
    burns = jnp.asarray(_BURNS)[mobs.kind] & ~covered & (time < DUSK) & (mobs.burn_ticks <= 0)
    health = mobs.health - jnp.where(burns, 1.0, 0.0)
    return dataclasses.replace(
        mobs,
        health=health,
        kind=jnp.where(burns & (health <= 0), 0, mobs.kind),
        burn_ticks=jnp.where(burns, BURN_TICKS, mobs.burn_ticks),
    )


def shown_hurt(mobs: Mobs) -> jax.Array:
    """bool [M], shown in red: hit or burnt half a second ago or less."""
    return (mobs.hurt_ticks > 0) | (mobs.burn_ticks > BURN_TICKS - HURT_TICKS)


def hurt(mobs: Mobs, which: jax.Array, damage: jax.Array, origin: jax.Array) -> tuple[Mobs, jax.Array, jax.Array]:
    """Hits one mob.

    Args:
      which: int32 [], its slot; negative: none.
      damage: float32 [], half hearts.
      origin: float32 [3], where the blow comes from.
    Returns:
      The mobs, the damage that counted float32 [], and the kind that died of it, int32 [] (0 if none).
    """
    index = jnp.arange(mobs.kind.shape[0])
    struck = (index == which) & (mobs.kind > 0) & (mobs.hurt_ticks <= 0)
    health = mobs.health - jnp.where(struck, damage, 0.0)
    away = mobs.position - origin
    away = away.at[:, 1].set(0.0)
    away = away / jnp.maximum(jnp.linalg.norm(away, axis=-1, keepdims=True), 1e-3)
    pushed = 0.5 * mobs.velocity + KNOCKBACK * away.at[:, 1].set(1.0)
    died = struck & (health <= 0)
    flees = struck & ~jnp.asarray(_HUNTS)[mobs.kind]
    after = dataclasses.replace(
        mobs,
        kind=jnp.where(died, 0, mobs.kind),
        health=health,
        velocity=jnp.where(struck[:, None], pushed, mobs.velocity),
        on_ground=mobs.on_ground & ~struck,
        hurt_ticks=jnp.where(struck, HURT_TICKS, mobs.hurt_ticks),
        panic_ticks=jnp.where(flees, PANIC_TICKS, mobs.panic_ticks),
    )
    return after, jnp.where(struck.any(), damage, 0.0), jnp.max(jnp.where(died, mobs.kind, 0))


def _walk(
    blocks: jax.Array, mobs: Mobs, heading: jax.Array, speed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Position, velocity and on_ground of all mobs after a tick of walking at `speed` [M] along `heading` [M, 3]."""

    def one(
        kind: jax.Array,
        position: jax.Array,
        velocity: jax.Array,
        on_ground: jax.Array,
        heading: jax.Array,
        speed: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        body = physics.Body(jnp.asarray(_HALF_WIDTH)[kind], jnp.asarray(_HEIGHT)[kind])  # type: ignore[arg-type]
        in_water = physics.block_at(blocks, position + jnp.array([0.0, 0.4, 0.0])) == b.WATER
        # On the ground it goes as fast as it wants to; a blow carries it through the air.
        walk = heading * speed
        wanted = jnp.where(on_ground, walk, velocity.at[1].set(0.0) * physics.AIR_INERTIA + 0.1 * walk)
        wanted = wanted.at[1].set(velocity[1])
        new, moved, hit = physics.collide(blocks, position, wanted, body)
        blocked = (speed > 0) & (hit[0] | hit[2])
        grounded = hit[1] & (wanted[1] < 0)
        fall = (moved[1] - physics.GRAVITY) * physics.VERTICAL_DRAG
        vertical = jnp.where(grounded, -physics.GRAVITY * physics.VERTICAL_DRAG, fall)
        vertical = jnp.where(grounded & blocked, physics.JUMP_SPEED, vertical)
        vertical = jnp.where(in_water, physics.WATER_JUMP, vertical)  # mobs float
        return new, moved.at[1].set(vertical), grounded & ~blocked

    return jax.vmap(one)(mobs.kind, mobs.position, mobs.velocity, mobs.on_ground, heading, speed)
