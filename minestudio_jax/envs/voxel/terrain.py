"""Terrain by biome, and a place to begin. Pure functions of the key, all arrays of fixed shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.state import WorldSettings

MARGIN = 2  # blocks of invisible wall on each side
MIN_TRUNK, MAX_TRUNK = 4, 6
SOIL = 3  # blocks below the surface that are not stone yet
GOAL_HEIGHT = 5
HEADROOM = 6  # levels above the highest ground: the player who jumps, and the wall above him


@dataclass(frozen=True)
class Biome:
    """
    Attributes:
      hills: greatest difference of the ground's height, blocks.
      tree_chance: that a cell of the trees' grid holds one.
      surface, soil: blocks on top and below it.
      water: height of the water above the lowest ground, blocks; 0 is none.
      shore: block on top where water is near or above.
      bare: height above the lowest ground from which on the stone is bare; 0 is never.
    """

    hills: int
    tree_chance: float
    surface: int = b.GRASS
    soil: int = b.DIRT
    water: int = 0
    shore: int = b.SAND
    bare: int = 0


BIOMES = {
    "plains": Biome(hills=3, tree_chance=0.1),
    "forest": Biome(hills=3, tree_chance=0.7),
    "hills": Biome(hills=7, tree_chance=0.3),
    "mountain": Biome(hills=8, tree_chance=0.1, bare=3),
    "desert": Biome(hills=3, tree_chance=0.0, surface=b.SAND, soil=b.SANDSTONE),
    "beach": Biome(hills=6, tree_chance=0.2, water=3),
}

# Minecraft's names of the biomes that have shorter ones here; the first is what it calls the biome itself, and others
# are what its missions call the group that it belongs to.
_IN_MINECRAFT = {"mountain": ("mountains", "extreme_hills"), "hills": ("wooded_hills",)}

# block, share of the stone in vanilla 1.16 near where it is most common, and greatest share of the depth it is found in
ORES = (
    (b.ID["coal_ore"], 0.012, 1.0),
    (b.ID["iron_ore"], 0.008, 0.8),
    (b.ID["lapis_ore"], 0.002, 0.4),
    (b.ID["gold_ore"], 0.002, 0.4),
    (b.ID["redstone_ore"], 0.008, 0.3),
    (b.ID["diamond_ore"], 0.001, 0.3),
)
_VEIN = 2  # side of the cubes that ores come in, blocks
_CAVE_THRESHOLD = 0.68


class Terrain(NamedTuple):
    """A new world.

    Attributes:
      blocks: uint8 [x, y, z].
      position: float32 [3], where the player begins.
      yaw: float32 [], where he looks, degrees.
      ground: int32 [x, z], height of the highest ground block.
      goal: float32 [3], foot of the pillar to go to; the first position if there is none.
    """

    blocks: jax.Array
    position: jax.Array
    yaw: jax.Array
    ground: jax.Array
    goal: jax.Array


def biome_called(name: str) -> str:
    """The biome that Minecraft, or this world, calls so; the name itself if there is none."""
    return next((biome for biome, names in _IN_MINECRAFT.items() if name in names), name)


def minecraft_name(biome: str) -> str:
    """What Minecraft calls a biome of this world."""
    return _IN_MINECRAFT.get(biome, (biome,))[0]


def _leaf_offsets() -> np.ndarray:
    """int [L, 3] around the trunk's top block: two wide layers, two narrow ones, as an oak has."""
    offsets = []
    for dy, radius in ((-2, 2), (-1, 2), (0, 1), (1, 1)):
        for dx in range(-radius, radius + 1):
            for dz in range(-radius, radius + 1):
                corner = abs(dx) == radius and abs(dz) == radius
                if not (corner and dy != -2):
                    offsets.append((dx, dy, dz))
    return np.array(offsets)


_LEAVES = _leaf_offsets()


def greatest_hills(settings: WorldSettings) -> int:
    """Greatest difference of the ground's height, blocks."""
    return BIOMES[settings.biome].hills if settings.hills < 0 else settings.hills


def ground_height(key: jax.Array, settings: WorldSettings) -> jax.Array:
    """Height of the ground, int32 [x, z]: value noise of two octaves, smoothly interpolated."""
    height = jnp.zeros((settings.size, settings.size))
    for octave, (cell, weight) in enumerate(((16, 0.7), (8, 0.3))):
        lattice_key = jax.random.fold_in(key, octave)
        height += weight * _smooth_noise(lattice_key, (settings.size, settings.size), cell)
    return settings.ground + jnp.round(height * greatest_hills(settings)).astype(jnp.int32)


def generate(key: jax.Array, settings: WorldSettings) -> Terrain:
    """One world.

    Args:
      key: PRNG key.
      settings: sizes, biome and densities.
    """
    keys = jax.random.split(key, 9)
    biome = BIOMES[settings.biome]
    size = settings.size
    ground = ground_height(keys[0], settings)
    world = _strata(keys[6], keys[7], ground, settings, biome)

    # One tree at most in every cell of a grid, somewhere inside it.
    tree_chance = biome.tree_chance if settings.tree_chance < 0 else settings.tree_chance
    cells = (size - 2 * MARGIN - 4) // settings.tree_spacing
    corner = MARGIN + 2 + settings.tree_spacing * np.mgrid[:cells, :cells].reshape(2, -1).T
    jitter = jax.random.randint(keys[1], corner.shape, 0, settings.tree_spacing - 1)
    tree_x, tree_z = (corner + jitter).T
    foot = ground[tree_x, tree_z]
    fertile = foot >= settings.ground + biome.water
    if biome.bare:
        fertile &= foot < settings.ground + biome.bare  # nothing grows on rock
    stands = (jax.random.uniform(keys[2], corner.shape[:1]) < tree_chance) & fertile
    # The player begins at one of the cells where something could grow; if there are trees at all, at one of them.
    start = jnp.argmax(jax.random.uniform(keys[3], corner.shape[:1]) + fertile)
    stands = stands.at[start].set(tree_chance > 0)
    world = _plant(keys[4], world, stands, tree_x, foot, tree_z)

    # The player begins at some side of that place, on cleared ground, looking roughly at it.
    angle, turn = jax.random.uniform(keys[5], (2,))
    angle = 2 * jnp.pi * angle
    away = settings.spawn_distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    there = jnp.stack([tree_x[start], tree_z[start]]) + 0.5
    x, z = _inside(there + away, size)
    feet = jnp.maximum(ground[x, z], settings.ground + biome.water - 1) + 1
    world = _without_leaves(world, x, z, feet)
    world = _set_column(world, x, z, feet, feet + 3, b.AIR)
    first = jnp.stack([x + 0.5, feet.astype(jnp.float32), z + 0.5]).astype(jnp.float32)
    looks_at = there - first[jnp.array([0, 2])]
    yaw = jnp.degrees(jnp.arctan2(-looks_at[0], looks_at[1])) + settings.spawn_turn * (2 * turn - 1)

    goal = first
    if settings.goal_distance > 0:
        # Towards the middle of the world, a little aside, so that it lies inside.
        middle = size / 2 - first[jnp.array([0, 2])]
        heading = jnp.arctan2(middle[1], middle[0]) + jax.random.uniform(keys[8], minval=-0.8, maxval=0.8)
        offset = settings.goal_distance * jnp.stack([jnp.cos(heading), jnp.sin(heading)])
        goal_x, goal_z = _inside(first[jnp.array([0, 2])] + offset, size)
        foot_y = ground[goal_x, goal_z] + 1
        world = _set_column(world, goal_x, goal_z, foot_y, foot_y + GOAL_HEIGHT, b.ID["white_wool"])
        goal = jnp.stack([goal_x + 0.5, foot_y.astype(jnp.float32), goal_z + 0.5]).astype(jnp.float32)

    wall = np.zeros(world.shape, bool)
    wall[:MARGIN] = wall[-MARGIN:] = wall[:, -1] = wall[:, :, :MARGIN] = wall[:, :, -MARGIN:] = True
    world = jnp.where(wall, jnp.uint8(b.BARRIER), world)
    return Terrain(world, first, yaw.astype(jnp.float32), ground, goal)


def _strata(
    cave_key: jax.Array, ore_key: jax.Array, ground: jax.Array, settings: WorldSettings, biome: Biome
) -> jax.Array:
    """Rock, soil, surface and water, uint8 [x, y, z]."""
    shape = (settings.size, settings.height, settings.size)
    y = jnp.arange(settings.height)[None, :, None]
    top = ground[:, None, :]
    rock = jnp.full(shape, b.STONE, jnp.uint8)
    if settings.ores > 0:
        rock = _with_ores(ore_key, rock, settings)
    if settings.caves:
        cave = _smooth_noise(cave_key, shape, 5) > _CAVE_THRESHOLD
        rock = jnp.where(cave & (y > 1) & (y < top - SOIL), b.AIR, rock)
    water = settings.ground + biome.water  # the first level above the water
    surface = jnp.where((top <= water) & (biome.water > 0), biome.shore, biome.surface)
    soil = jnp.where((top <= water) & (biome.water > 0), biome.shore, biome.soil)
    if biome.bare:
        is_bare = top >= settings.ground + biome.bare
        surface, soil = jnp.where(is_bare, b.STONE, surface), jnp.where(is_bare, b.STONE, soil)
    above = jnp.where((y < water) & (biome.water > 0), b.WATER, b.AIR)
    choices = [jnp.full(shape, b.BEDROCK), rock.astype(jnp.int32), jnp.broadcast_to(soil, shape)]
    choices.append(jnp.broadcast_to(surface, shape))
    return jnp.select([y == 0, y < top - SOIL, y < top, y == top], choices, above).astype(jnp.uint8)


def _with_ores(key: jax.Array, rock: jax.Array, settings: WorldSettings) -> jax.Array:
    """Ores in small cubes, the rarer ones deeper down."""
    veins = tuple(-(-side // _VEIN) for side in rock.shape)
    depth = jnp.arange(rock.shape[1])[None, :, None] / settings.ground
    for number, (ore, share, deepest) in enumerate(ORES):
        vein = jax.random.uniform(jax.random.fold_in(key, number), veins) < share * settings.ores
        for axis in range(3):
            vein = jnp.repeat(vein, _VEIN, axis=axis)
        vein = vein[: rock.shape[0], : rock.shape[1], : rock.shape[2]]
        rock = jnp.where(vein & ((depth < deepest) | (deepest >= 1.0)), jnp.uint8(ore), rock)
    return rock


def _plant(
    key: jax.Array, world: jax.Array, stands: jax.Array, x: jax.Array, foot: jax.Array, z: jax.Array
) -> jax.Array:
    """Oaks of random height where they stand."""
    trunk = jax.random.randint(key, stands.shape, MIN_TRUNK, MAX_TRUNK + 1)
    outside = 10 * world.shape[0]  # writes there are dropped
    leaves = jnp.stack([x, foot + trunk, z], -1)[:, None] + _LEAVES
    leaf_x = jnp.where(stands[:, None], leaves[..., 0], outside)
    # Leaves only where nothing is: their id is above that of the soil a slope may put in their way.
    free = world.at[leaf_x, leaves[..., 1], leaves[..., 2]].get(mode="fill", fill_value=b.STONE) == b.AIR
    leaf_x = jnp.where(free, leaf_x, outside)
    world = world.at[leaf_x, leaves[..., 1], leaves[..., 2]].set(jnp.uint8(b.LEAVES), mode="drop")
    level = np.arange(1, MAX_TRUNK + 1)
    log_x = jnp.where(stands[:, None] & (level <= trunk[:, None]), x[:, None], outside)
    return world.at[log_x, foot[:, None] + level, z[:, None]].set(jnp.uint8(b.LOG), mode="drop")


def _smooth_noise(key: jax.Array, shape: tuple[int, ...], cell: int) -> jax.Array:
    """Value noise in 0..1: random numbers on a lattice of that spacing, smoothly interpolated along each axis."""
    lattice = jax.random.uniform(key, tuple(side // cell + 2 for side in shape))
    for axis, side in enumerate(shape):
        at = np.arange(side) / cell
        i, f = at.astype(int), at - at.astype(int)
        f = (f * f * (3 - 2 * f)).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        lattice = jnp.take(lattice, i, axis=axis) * (1 - f) + jnp.take(lattice, i + 1, axis=axis) * f
    return lattice


def _inside(point: jax.Array, size: int) -> jax.Array:
    """The cell of a point [x, z], kept off the walls. int32 [2]."""
    return jnp.clip(jnp.floor(point), MARGIN + 1, size - MARGIN - 2).astype(jnp.int32)


def _without_leaves(world: jax.Array, x: jax.Array, z: jax.Array, feet: jax.Array) -> jax.Array:
    """No leaves before the eyes of one who stands there."""
    around = jax.lax.dynamic_slice(world, (x - 1, 0, z - 1), (3, world.shape[1], 3))
    y = jnp.arange(world.shape[1])[None, :, None]
    cut = (around == b.LEAVES) & (y >= feet) & (y < feet + 3)
    return jax.lax.dynamic_update_slice(world, jnp.where(cut, jnp.uint8(b.AIR), around), (x - 1, 0, z - 1))


def _set_column(world: jax.Array, x: jax.Array, z: jax.Array, low: jax.Array, high: jax.Array, block: int) -> jax.Array:
    """Fills the cells low..high-1 above one place."""
    y = jnp.arange(world.shape[1])
    column = jnp.where((y >= low) & (y < high), jnp.uint8(block), world[x, :, z])
    return world.at[x, :, z].set(column)
