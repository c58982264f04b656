"""The player's view: one ray a pixel, shaded like Minecraft's, with everything that a player sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import hud, physics, terrain
from minestudio_jax.envs.voxel.boxes import PICTURE_SIZE, Boxes, boxes_of, pictures
from minestudio_jax.envs.voxel.raycast import box_distance, cast
from minestudio_jax.envs.voxel.state import State, WorldSettings

VERTICAL_FOV_DEG = 70.0
ASPECT = 16 / 9  # MineRL's frame; squeezed into the image whatever its shape, as for VPT
SKY = np.array([120.0, 167.0, 255.0], np.float32)
FOG = np.array([192.0, 216.0, 255.0], np.float32)
DEEP_WATER = np.array([20.0, 50.0, 120.0], np.float32)
FOG_BEGINS = 0.6  # of the distance at which nothing is seen any more
FOG_DISTANCE = 28.0
WATER_FOG_DISTANCE = 12.0
_NIGHT = 0.25  # brightness of the darkest night
_HURT = np.array([255.0, 60.0, 60.0], np.float32)
_SHADE_X, _SHADE_UP, _SHADE_DOWN, _SHADE_Z = 0.6, 1.0, 0.5, 0.8


def render(state: State, height: int, width: int, settings: WorldSettings) -> jax.Array:
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
    eye = physics.eye(player)
    wet = terrain.BIOMES[settings.biome].water > 0
    under_water = (physics.block_at(state.blocks, eye) == b.WATER) if wet else jnp.bool_(False)
    hit = cast(
        state.blocks, state.clearance, eye, dx, dy, dz, settings.ray_strides, through_water=under_water if wet else True
    )

    reach = jnp.where(hit.block == b.AIR, 0.0, hit.distance)
    x, y, z = eye[0] + reach * dx, eye[1] + reach * dy, eye[2] + reach * dz
    face = jnp.where(hit.axis == 1, jnp.where(dy < 0, b.TOP, b.BOTTOM), b.SIDE)
    u = jnp.where(hit.axis == 0, z, x)
    v = jnp.where(hit.axis == 1, z, -y)
    texel_u, texel_v = (jnp.floor((t - jnp.floor(t)) * b.TEXTURE_SIZE).astype(jnp.int32) for t in (u, v))
    texel = ((hit.block * 3 + face) * b.TEXTURE_SIZE + texel_v) * b.TEXTURE_SIZE + texel_u
    colour = jnp.asarray(_ATLAS)[texel]
    colour = colour * (_shade(hit.axis, dy) * _cracks(state, hit.cell, texel_u, texel_v))[..., None]
    open_sky = (hit.block == b.AIR) | (hit.block == b.BARRIER)
    distance = hit.distance
    boxes = boxes_of(state)
    if boxes is not None:
        colour, distance, open_sky = _with_boxes(boxes, eye, (dx, dy, dz), colour, distance, open_sky)

    daylight = jnp.float32(1.0)
    if settings.day_cycle or settings.start_time != WorldSettings.start_time:
        daylight = brightness(state.time)
    fog_distance = jnp.where(under_water, WATER_FOG_DISTANCE, FOG_DISTANCE)
    fog_colour = jnp.where(under_water, DEEP_WATER, FOG)
    fog = jnp.clip((distance / fog_distance - FOG_BEGINS) / (1 - FOG_BEGINS), 0.0, 1.0)
    colour = colour + (fog_colour - colour) * fog[..., None]
    high = jnp.clip(dy * 3, 0.0, 1.0)[..., None]
    sky = jnp.where(under_water, DEEP_WATER, FOG + (SKY - FOG) * high)
    colour = jnp.where(open_sky[..., None], sky, colour) * daylight
    if settings.hud:
        colour = hud.draw(colour, state)
    colour = jnp.where(hud.crosshair(height, width)[..., None], 255.0 - colour, colour)
    return jnp.clip(colour, 0, 255).astype(jnp.uint8)


def brightness(time: jax.Array) -> jax.Array:
    """How bright it is at a time of day in ticks since dawn; 1 by day, float32 []."""
    sun = jnp.sin(2 * jnp.pi * time / 24000.0)
    return jnp.clip(_NIGHT + (1 - _NIGHT) * (2.0 * sun + 0.6), _NIGHT, 1.0)


_ATLAS = b.textures().reshape(-1, 3)
_PICTURES = pictures().reshape(-1, 3)


def _shade(axis: jax.Array, dy: jax.Array) -> jax.Array:
    """Brightness of a face by its direction."""
    vertical = jnp.where(dy < 0, _SHADE_UP, _SHADE_DOWN)
    return jnp.where(axis == 0, _SHADE_X, jnp.where(axis == 2, _SHADE_Z, vertical))


_Nearest = tuple[jax.Array, jax.Array, jax.Array]  # distance, number of the box, axis of its face; [H, W] each


def _with_boxes(
    boxes: Boxes,
    eye: jax.Array,
    directions: tuple[jax.Array, jax.Array, jax.Array],
    colour: jax.Array,
    distance: jax.Array,
    open_sky: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Colour [H, W, 3], distance and whether it is sky [H, W], with the boxes that are nearer than the blocks."""

    def one(carry: _Nearest, box: tuple[Boxes, jax.Array]) -> tuple[_Nearest, None]:
        nearest, which, axis = carry
        there, its_axis = box_distance(eye, *directions, box[0].low, box[0].high)
        nearer = there < nearest
        return (
            jnp.where(nearer, there, nearest),
            jnp.where(nearer, box[1], which),
            jnp.where(nearer, its_axis, axis),
        ), None

    none = jnp.full(distance.shape, -1, jnp.int32)
    number = jnp.arange(boxes.picture.shape[0], dtype=jnp.int32)
    (nearest, which, axis), _ = jax.lax.scan(one, (distance, none, none), (boxes, number))
    # Where on the face, 0..1 from the left and from above.
    low, high = boxes.low[which], boxes.high[which]
    at = [(eye[i] + nearest * d - low[..., i]) / (high[..., i] - low[..., i]) for i, d in enumerate(directions)]
    across = jnp.where(axis == 0, at[2], at[0])
    down = jnp.where(axis == 1, at[2], 1 - at[1])
    column, row = (jnp.clip(t * PICTURE_SIZE, 0, PICTURE_SIZE - 1).astype(jnp.int32) for t in (across, down))
    painted = jnp.asarray(_PICTURES)[(boxes.picture[which] * PICTURE_SIZE + row) * PICTURE_SIZE + column]
    painted = jnp.where(boxes.hurt[which][..., None], 0.4 * painted + 0.6 * _HURT, painted)
    painted = painted * _shade(axis, directions[1])[..., None]
    hit = which >= 0
    return jnp.where(hit[..., None], painted, colour), nearest, open_sky & ~hit


def _cracks(state: State, index: jax.Array, texel_u: jax.Array, texel_v: jax.Array) -> jax.Array:
    """Factor on the brightness: dark lines spread over the block under attack as it gives way."""
    _, size_y, size_z = state.blocks.shape
    x, y, z = state.breaking.target
    on_target = index == (x * size_y + y) * size_z + z
    lines = (texel_u * 5 + texel_v * 3) % 8 < jnp.ceil(state.breaking.progress * 5)
    return jnp.where(on_target & lines, 0.35, 1.0)
