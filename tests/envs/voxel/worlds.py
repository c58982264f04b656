"""Small worlds made by hand, for tests of single parts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics
from minestudio_jax.envs.voxel.world import standing_player

FLOOR = 4  # height of the top of the floor


def flat(size: int = 24, height: int = 48) -> np.ndarray:
    """uint8 [size, height, size]: stone up to FLOOR, air above, the invisible wall around."""
    world = np.zeros((size, height, size), np.uint8)
    world[:, :FLOOR] = b.STONE
    world[0] = world[-1] = world[:, -1] = world[:, :, 0] = world[:, :, -1] = b.BARRIER
    return world


def controls(*keys: str, pitch: float = 0.0, yaw: float = 0.0, hotbar: int = -1, craft: int = 0) -> physics.Controls:
    names = [name for name in physics.Controls._fields if name not in ("pitch", "yaw", "hotbar", "craft")]
    assert set(keys) <= set(names)
    return physics.Controls(
        **{name: jnp.bool_(name in keys) for name in names},
        hotbar=jnp.int32(hotbar),
        craft=jnp.int32(craft),
        pitch=jnp.float32(pitch),
        yaw=jnp.float32(yaw),
    )


def standing(x: float, z: float, y: float = FLOOR, yaw: float = 0.0):
    return standing_player(jnp.array([x, y, z], jnp.float32), jnp.float32(yaw))
