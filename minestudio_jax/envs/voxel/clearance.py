"""How far around each cell all is air, so that rays cross air in long strides.

The clearance of a cell of air is r if no cell less than r away, along whichever axis is longest (the Chebyshev
distance), is anything but air. It may be stated too small, never too large: then rays stride less and end alike. Hence
a broken block costs one write, and only placing looks around.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minestudio_jax.envs.voxel import blocks as b

LARGEST = 6  # no stride is longer; more finds no hit sooner in the worlds of the tasks
WATER = 255  # of a cell of water: no clearance, but no obstacle to every ray either


def clearance_of(blocks: jax.Array) -> jax.Array:
    """uint8, of the shape of `blocks` [x, y, z]: 1 to LARGEST for air, WATER for water, 0 for everything else."""
    near = blocks != b.AIR
    clearance = (~near).astype(jnp.uint8)
    for _ in range(LARGEST - 1):
        for axis in range(3):
            window = [3 if i == axis else 1 for i in range(3)]
            near = lax.reduce_window(near, False, lax.bitwise_or, window, (1, 1, 1), "SAME")
        clearance += ~near
    return jnp.where(blocks == b.WATER, jnp.uint8(WATER), clearance)


def after_breaking(clearance: jax.Array, cell: jax.Array, broken: jax.Array) -> jax.Array:
    """The clearance after the block at `cell`, int32 [3], was broken, if it was, bool []."""
    at = tuple(jnp.where(broken, cell, 0))
    return clearance.at[at].set(jnp.where(broken, jnp.uint8(1), clearance[at]))


def after_placing(clearance: jax.Array, cell: jax.Array, placed: jax.Array) -> jax.Array:
    """The clearance after a block was placed at `cell`, int32 [3], if it was, bool []."""
    side = 2 * LARGEST - 1
    corner = jnp.clip(cell - LARGEST + 1, 0, jnp.array(clearance.shape) - side)
    around = lax.dynamic_slice(clearance, corner, (side, side, side))
    away = jnp.abs(jnp.asarray(_OFFSETS) + (corner - cell)[:, None, None, None])
    away = jnp.max(away, axis=0).astype(jnp.uint8)
    # Water keeps its mark, unless the block takes its place.
    nearer = jnp.where((around == WATER) & (away > 0), jnp.uint8(WATER), jnp.minimum(around, away))
    return lax.dynamic_update_slice(clearance, jnp.where(placed, nearer, around), corner)


_OFFSETS = np.mgrid[: 2 * LARGEST - 1, : 2 * LARGEST - 1, : 2 * LARGEST - 1]
