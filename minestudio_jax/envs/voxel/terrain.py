"""Terrain: gently hilly ground with oaks, and a place to begin. Pure functions of the key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.state import WorldSettings

GROUND = 6  # height of the lowest grass
MARGIN = 2  # blocks of invisible wall on each side
MIN_TRUNK, MAX_TRUNK = 4, 6


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


def ground_height(key: jax.Array, settings: WorldSettings) -> jax.Array:
    """Height of the grass, int32 [x, z]: value noise of two octaves, smoothly interpolated."""
    size = settings.size
    height = jnp.zeros((size, size))
    for octave, (cell, weight) in enumerate(((16, 0.7), (8, 0.3))):
        points = size // cell + 2
        lattice = jax.random.uniform(jax.random.fold_in(key, octave), (points, points))
        at = np.arange(size) / cell
        i, f = at.astype(int), at - at.astype(int)
        f = f * f * (3 - 2 * f)
        rows = lattice[i] * (1 - f)[:, None] + lattice[i + 1] * f[:, None]
        height += weight * (rows[:, i] * (1 - f) + rows[:, i + 1] * f)
    return GROUND + jnp.round(height * settings.hills).astype(jnp.int32)


def generate(key: jax.Array, settings: WorldSettings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One world.

    Args:
      key: PRNG key.
      settings: sizes and densities.
    Returns:
      blocks uint8 [x, y, z]; the player's first position float32 [3] and yaw float32 [] in degrees.
    """
    keys = jax.random.split(key, 6)
    size, height = settings.size, settings.height
    ground = ground_height(keys[0], settings)
    y = jnp.arange(height)[None, :, None]
    top = ground[:, None, :]
    world = jnp.select([y == 0, y < top - 3, y < top, y == top], [b.BEDROCK, b.STONE, b.DIRT, b.GRASS], b.AIR).astype(
        jnp.uint8
    )

    # One tree at most in every cell of a grid, somewhere inside it.
    cells = (size - 2 * MARGIN - 4) // settings.tree_spacing
    corner = MARGIN + 2 + settings.tree_spacing * np.mgrid[:cells, :cells].reshape(2, -1).T
    jitter = jax.random.randint(keys[1], corner.shape, 0, settings.tree_spacing - 1)
    stands = jax.random.uniform(keys[2], corner.shape[:1]) < settings.tree_chance
    start_tree = jax.random.randint(keys[3], (), 0, len(corner))
    stands = stands.at[start_tree].set(True)  # there is always one to begin at
    trunk = jax.random.randint(keys[4], corner.shape[:1], MIN_TRUNK, MAX_TRUNK + 1)
    tree_x, tree_z = (corner + jitter).T
    foot = ground[tree_x, tree_z]
    outside = 10 * size  # writes there are dropped

    leaves = jnp.stack([tree_x, foot + trunk, tree_z], -1)[:, None] + _LEAVES
    leaf_x = jnp.where(stands[:, None], leaves[..., 0], outside)
    world = world.at[leaf_x, leaves[..., 1], leaves[..., 2]].max(jnp.uint8(b.LEAVES), mode="drop")
    level = np.arange(1, MAX_TRUNK + 1)
    log_x = jnp.where(stands[:, None] & (level <= trunk[:, None]), tree_x[:, None], outside)
    world = world.at[log_x, foot[:, None] + level, tree_z[:, None]].set(jnp.uint8(b.LOG), mode="drop")

    # The player begins at some side of one tree, on cleared ground, looking roughly at it.
    angle, turn = jax.random.uniform(keys[5], (2,))
    angle = 2 * jnp.pi * angle
    away = settings.spawn_distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    tree = jnp.stack([tree_x[start_tree], tree_z[start_tree]]) + 0.5
    inside = jnp.clip(jnp.floor(tree + away), MARGIN + 1, size - MARGIN - 2).astype(jnp.int32)
    x, z = inside
    feet = ground[x, z] + 1
    clearing = jnp.arange(height)
    column = world[x, :, z]
    world = world.at[x, :, z].set(
        jnp.where((clearing >= feet) & (clearing < feet + 3), b.AIR, column).astype(jnp.uint8)
    )
    to_tree = tree - (inside + 0.5)
    yaw = jnp.degrees(jnp.arctan2(-to_tree[0], to_tree[1])) + settings.spawn_turn * (2 * turn - 1)

    wall = np.zeros((size, height, size), bool)
    wall[:MARGIN] = wall[-MARGIN:] = wall[:, -1] = wall[:, :, :MARGIN] = wall[:, :, -MARGIN:] = True
    world = jnp.where(wall, jnp.uint8(b.BARRIER), world)
    position = jnp.stack([x + 0.5, feet.astype(jnp.float32), z + 0.5]).astype(jnp.float32)
    return world, position, yaw.astype(jnp.float32)
