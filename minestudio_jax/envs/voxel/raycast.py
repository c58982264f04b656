"""Rays through the voxel grid: Amanatides and Woo 1987, "A Fast Voxel Traversal Algorithm for Ray Tracing"."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from minestudio_jax.envs.voxel import blocks as b

_FAR = 1e9


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
    eye: jax.Array,
    dx: jax.Array,
    dy: jax.Array,
    dz: jax.Array,
    max_crossings: int,
    through_water: jax.Array | bool = True,
) -> Hit:
    """Follows rays from one eye to the first cell that is neither air nor, if they go through it, water.

    A plain loop of fixed length over separate arrays: on CPUs faster than leaving early, and never to be unrolled.
    The world must be enclosed, so that no ray leaves it.

    Args:
      blocks: uint8 [x, y, z].
      eye: float32 [3], inside the world.
      dx, dy, dz: float32 [...], unit directions.
      max_crossings: cell borders to cross at most.
      through_water: bool [], whether water stops no ray.
    """
    flat = blocks.reshape(-1)
    _, size_y, size_z = blocks.shape
    cell = jnp.floor(eye)
    start = ((cell[0] * size_y + cell[1]) * size_z + cell[2]).astype(jnp.int32)

    def axis_setup(d: jax.Array, at: jax.Array, low: jax.Array, stride: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        inverse = jnp.where(d == 0, _FAR, 1.0 / jnp.where(d == 0, 1.0, jnp.abs(d)))
        to_border = jnp.where(d > 0, low + 1 - at, at - low)
        return to_border * inverse, inverse, jnp.where(d > 0, stride, -stride).astype(jnp.int32)

    tx, step_tx, step_x = axis_setup(dx, eye[0], cell[0], size_y * size_z)
    ty, step_ty, step_y = axis_setup(dy, eye[1], cell[1], size_z)
    tz, step_tz, step_z = axis_setup(dz, eye[2], cell[2], 1)

    def cross(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tx, ty, tz, index, block, distance, axis = carry
        open_ = (block == b.AIR) | ((block == b.WATER) & through_water)
        along_x = (tx <= ty) & (tx <= tz)
        along_y = ~along_x & (ty <= tz)
        nearest = jnp.minimum(tx, jnp.minimum(ty, tz))
        step = jnp.where(along_x, step_x, jnp.where(along_y, step_y, step_z))
        index = jnp.where(open_, index + step, index)
        distance = jnp.where(open_, nearest, distance)
        axis = jnp.where(open_, jnp.where(along_x, 0, jnp.where(along_y, 1, 2)), axis)
        block = flat[index].astype(jnp.int32)
        tx = jnp.where(along_x, tx + step_tx, tx)
        ty = jnp.where(along_y, ty + step_ty, ty)
        tz = jnp.where(~along_x & ~along_y, tz + step_tz, tz)
        return tx, ty, tz, index, block, distance, axis

    shape = dx.shape
    carry = (
        tx,
        ty,
        tz,
        jnp.broadcast_to(start, shape),
        jnp.zeros(shape, jnp.int32),
        jnp.full(shape, _FAR, jnp.float32),
        jnp.zeros(shape, jnp.int32),
    )
    _, _, _, index, block, distance, axis = lax.fori_loop(0, max_crossings, cross, carry)
    nothing = (block == b.AIR) | ((block == b.WATER) & through_water)
    return Hit(jnp.where(nothing, b.AIR, block), index, jnp.where(nothing, _FAR, distance), axis)


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
