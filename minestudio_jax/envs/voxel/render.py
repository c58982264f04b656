"""The player's view: one ray a pixel, shaded like Minecraft's, with crosshair and cracks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics
from minestudio_jax.envs.voxel.raycast import cast
from minestudio_jax.envs.voxel.state import State

VERTICAL_FOV_DEG = 70.0
ASPECT = 16 / 9  # MineRL's frame; squeezed into the image whatever its shape, as for VPT
SKY = np.array([120.0, 167.0, 255.0], np.float32)
FOG = np.array([192.0, 216.0, 255.0], np.float32)
FOG_BEGINS = 0.6  # of the distance at which nothing is seen any more
FOG_DISTANCE = 28.0
_SHADE_X, _SHADE_UP, _SHADE_DOWN, _SHADE_Z = 0.6, 1.0, 0.5, 0.8


def render(state: State, height: int, width: int, max_crossings: int) -> jax.Array:
    """uint8 [height, width, 3], RGB."""
    player = state.player
    tangent = np.tan(np.radians(VERTICAL_FOV_DEG / 2))
    right = tangent * ASPECT * (2 * (np.arange(width, dtype=np.float32) + 0.5) / width - 1)
    up = tangent * (1 - 2 * (np.arange(height, dtype=np.float32) + 0.5) / height)
    right, up = (jnp.asarray(g, jnp.float32) for g in np.meshgrid(right, up))
    norm = jax.lax.rsqrt(1 + right**2 + up**2)

    yaw, pitch = jnp.radians(player.yaw), jnp.radians(player.pitch)
    # Forward is tilted down by the pitch; then everything is turned by the yaw.
    level = (jnp.cos(pitch) + up * jnp.sin(pitch)) * norm
    dy = (up * jnp.cos(pitch) - jnp.sin(pitch)) * norm
    side = right * norm
    dx = -jnp.sin(yaw) * level - jnp.cos(yaw) * side
    dz = jnp.cos(yaw) * level - jnp.sin(yaw) * side
    eye = player.position + physics.EYE_HEIGHT * jnp.array([0.0, 1.0, 0.0])
    hit = cast(state.blocks, eye, dx, dy, dz, max_crossings)

    reach = jnp.where(hit.block == b.AIR, 0.0, hit.distance)
    x, y, z = eye[0] + reach * dx, eye[1] + reach * dy, eye[2] + reach * dz
    face = jnp.where(hit.axis == 1, jnp.where(dy < 0, b.TOP, b.BOTTOM), b.SIDE)
    u = jnp.where(hit.axis == 0, z, x)
    v = jnp.where(hit.axis == 1, z, -y)
    texel_u, texel_v = (jnp.floor((t - jnp.floor(t)) * b.TEXTURE_SIZE).astype(jnp.int32) for t in (u, v))
    texel = ((hit.block * 3 + face) * b.TEXTURE_SIZE + texel_v) * b.TEXTURE_SIZE + texel_u
    colour = jnp.asarray(_ATLAS)[texel]

    shade = jnp.where(
        hit.axis == 0, _SHADE_X, jnp.where(hit.axis == 2, _SHADE_Z, jnp.where(dy < 0, _SHADE_UP, _SHADE_DOWN))
    )
    colour = colour * (shade * _cracks(state, hit.cell, texel_u, texel_v))[..., None]
    open_sky = (hit.block == b.AIR) | (hit.block == b.BARRIER)
    fog = jnp.clip((hit.distance / FOG_DISTANCE - FOG_BEGINS) / (1 - FOG_BEGINS), 0.0, 1.0)
    colour = colour + (FOG - colour) * fog[..., None]
    high = jnp.clip(dy * 3, 0.0, 1.0)[..., None]
    colour = jnp.where(open_sky[..., None], FOG + (SKY - FOG) * high, colour)
    colour = jnp.where(_crosshair(height, width)[..., None], 255.0 - colour, colour)
    return jnp.clip(colour, 0, 255).astype(jnp.uint8)


_ATLAS = b.textures().reshape(-1, 3)


def _cracks(state: State, index: jax.Array, texel_u: jax.Array, texel_v: jax.Array) -> jax.Array:
    """Factor on the brightness: dark lines spread over the block under attack as it gives way."""
    _, size_y, size_z = state.blocks.shape
    x, y, z = state.breaking.target
    on_target = index == (x * size_y + y) * size_z + z
    lines = (texel_u * 5 + texel_v * 3) % 8 < jnp.ceil(state.breaking.progress * 5)
    return jnp.where(on_target & lines, 0.35, 1.0)


def _crosshair(height: int, width: int) -> np.ndarray:
    """bool [height, width], a small plus in the middle."""
    y, x = np.mgrid[:height, :width]
    y, x = abs(y - (height - 1) / 2), abs(x - (width - 1) / 2)
    arm, half = max(height, width) / 40, max(height, width) / 120 + 0.5
    return ((y < half) & (x < arm)) | ((x < half) & (y < arm))
