"""Rays through the voxel grid: Amanatides and Woo 1987, "A Fast Voxel Traversal Algorithm for Ray Tracing".

Instead of cell by cell a ray crosses the whole cube that is known to be air around the cell it is in.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.clearance import WATER

_FAR = 1e9
_STRIDES_PER_KERNEL = 8  # on accelerators


class Hit(NamedTuple):
    """Where rays end, arrays of the rays' shape.

    Attributes:
      block: int32, id of what stopped the ray; AIR if nothing did.
      cell: int32, flat index of the cell in `blocks`.
      distance: float32, along the unit direction, blocks.
      axis: int32, of the face's normal: 0 x, 1 y, 2 z.
    """

    block: jax.Array
    cell: jax.Array
    distance: jax.Array
    axis: jax.Array


def cast(
    blocks: jax.Array,
    clearance: jax.Array,
    eye: jax.Array,
    dx: jax.Array,
    dy: jax.Array,
    dz: jax.Array,
    max_strides: int,
    through_water: jax.Array | bool = True,
) -> Hit:
    """Follows rays from one eye to the first cell that is neither air nor, if they go through it, water.

    The cell of the eye itself stops no ray. The world must be enclosed, so that no ray leaves it.

    A loop of fixed length over separate arrays: on CPUs faster than leaving early, and there never to be unrolled. On
    accelerators each turn of the loop is a kernel that reads and writes the state of all rays, so some are joined.

    Args:
      blocks: uint8 [x, y, z].
      clearance: uint8 [x, y, z], of these blocks.
      eye: float32 [3], inside the world.
      dx, dy, dz: float32 [...], unit directions.
      max_strides: a ray that has hit nothing after so many has hit nothing.
      through_water: bool [], whether water stops no ray.
    """
    flat = clearance.reshape(-1)
    _, size_y, size_z = clearance.shape
    directions = [jnp.where(d == 0, 1.0 / _FAR, d) for d in (dx, dy, dz)]
    inverse = [1.0 / d for d in directions]
    sign = [jnp.where(d > 0, 1.0, -1.0) for d in directions]
    near_side = [jnp.where(d > 0, 0.0, 1.0) for d in directions]  # of a cell's two faces, seen from the eye

    def index_of(cell: list[jax.Array]) -> jax.Array:
        return ((cell[0] * size_y + cell[1]) * size_z + cell[2]).astype(jnp.int32)

    def reach_from(cell: list[jax.Array]) -> jax.Array:
        """Half the side of the cube of air around a cell, rounded up; 0 where a ray stops. float32 [...]."""
        clear = flat[index_of(cell)]
        return jnp.where(clear == WATER, jnp.where(through_water, 1, 0), clear).astype(jnp.float32)

    def to_near_face(cell: list[jax.Array]) -> list[jax.Array]:
        """Per axis, how far along the ray the cell's face on the eye's side is."""
        return [(c + near_side[i] - eye[i]) * inverse[i] for i, c in enumerate(cell)]

    def stride(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        *cell, reach = carry
        beyond = [c + s * reach for c, s in zip(cell, sign, strict=True)]  # the first cells outside the cube
        leaves = to_near_face(beyond)
        nearest = jnp.minimum(leaves[0], jnp.minimum(leaves[1], leaves[2]))
        inside = reach - 1.0
        after = []
        for i, c in enumerate(cell):
            # Rounding must not lead out of the cube but through the face.
            along = jnp.clip(jnp.floor(eye[i] + nearest * directions[i]), c - inside, c + inside)
            after.append(jnp.where(reach > 0, jnp.where(leaves[i] == nearest, beyond[i], along), c))
        return *after, reach_from(after)

    first = [jnp.broadcast_to(c, dx.shape) for c in jnp.floor(eye)]
    unroll = 1 if jax.default_backend() == "cpu" else _STRIDES_PER_KERNEL
    begin = (*first, jnp.maximum(reach_from(first), 1.0))
    *cell, reach = lax.fori_loop(0, max_strides, stride, begin, unroll=unroll)
    entry = to_near_face(cell)
    distance = jnp.maximum(entry[0], jnp.maximum(entry[1], entry[2]))
    axis = jnp.where(entry[0] == distance, 0, jnp.where(entry[1] == distance, 1, 2))
    stopped = reach == 0
    block = jnp.where(stopped, blocks.reshape(-1)[index_of(cell)].astype(jnp.int32), b.AIR)
    return Hit(block, index_of(cell), jnp.where(stopped, distance, _FAR), axis)


def look_direction(yaw: jax.Array, pitch: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit vector of a view in degrees: (-sin yaw cos pitch, -sin pitch, cos yaw cos pitch)."""
    yaw, pitch = jnp.radians(yaw), jnp.radians(pitch)
    return -jnp.sin(yaw) * jnp.cos(pitch), -jnp.sin(pitch), jnp.cos(yaw) * jnp.cos(pitch)


def box_distance(
    eye: jax.Array, dx: jax.Array, dy: jax.Array, dz: jax.Array, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where rays enter a box: the slab test.

    Args:
      eye: float32 [3].
      dx, dy, dz: float32 [...], unit directions.
      low, high: float32 [3], the box's corners.
    Returns:
      distance [...], infinite where the box is missed or the eye is inside it, and the axis of the face that is hit,
      int32 [...].
    """
    near, far = [], []
    for i, d in enumerate((dx, dy, dz)):
        inverse = 1.0 / jnp.where(jnp.abs(d) < 1e-7, 1e-7, d)
        one, other = (low[i] - eye[i]) * inverse, (high[i] - eye[i]) * inverse
        near.append(jnp.minimum(one, other))
        far.append(jnp.maximum(one, other))
    entry = jnp.maximum(near[0], jnp.maximum(near[1], near[2]))
    exit_ = jnp.minimum(far[0], jnp.minimum(far[1], far[2]))
    axis = jnp.where(entry == near[0], 0, jnp.where(entry == near[1], 1, 2)).astype(jnp.int32)
    return jnp.where((entry <= exit_) & (entry > 0), entry, jnp.inf), axis
