from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import voxel
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics, raycast
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.render import ASPECT, VERTICAL_FOV_DEG, render
from minestudio_jax.envs.voxel.state import Breaking, State, WorldSettings
from tests.envs.voxel.worlds import FLOOR, flat, standing

SIZE = 33  # odd: the middle pixel looks exactly ahead
MIDDLE = SIZE // 2


SETTINGS = WorldSettings(day_cycle=False, hud=False)
EMPTY = jax.jit(voxel.make("chop_tree", size=24, height=20).reset)(jax.random.key(0))


def scene(blocks, yaw=0.0, pitch=0.0, progress=0.0, target=(0, 0, 0)) -> State:
    player = dataclasses.replace(standing(12.5, 12.5, yaw=yaw), pitch=jnp.float32(pitch))
    breaking = Breaking(jnp.array(target, jnp.int32), jnp.float32(progress), jnp.int32(0))
    blocks = jnp.asarray(blocks)
    return dataclasses.replace(EMPTY, blocks=blocks, clearance=clearance_of(blocks), player=player, breaking=breaking)


draw = jax.jit(functools.partial(render, height=SIZE, width=SIZE, settings=SETTINGS))


def image_of(blocks, **kwargs) -> np.ndarray:
    return np.asarray(draw(scene(blocks, **kwargs))).astype(float)


def wall(axis: int, at: int, block: int) -> np.ndarray:
    blocks = flat()
    index = [slice(1, -1), slice(FLOOR, -1), slice(1, -1)]
    index[axis] = at
    blocks[tuple(index)] = block
    return blocks


def greenness(image):
    return image[..., 1] - image[..., [0, 2]].mean(axis=-1)


@pytest.mark.parametrize(("yaw", "axis", "at"), [(0, 2, 15), (180, 2, 9), (-90, 0, 15), (90, 0, 9)])
def test_each_yaw_looks_along_its_axis(yaw, axis, at):
    """Leaves fill the view only where the wall stands."""
    blocks = wall(axis, at, b.LEAVES)
    ahead, behind = image_of(blocks, yaw=yaw), image_of(blocks, yaw=yaw + 180)
    assert greenness(ahead)[2 : MIDDLE - 3].mean() > 30
    assert greenness(behind)[2 : MIDDLE - 3].mean() < 5


def test_left_and_right_up_and_down_have_minecrafts_signs():
    blocks = flat()
    blocks[13:-1, FLOOR:-1, 15] = b.LEAVES  # looking south, east is on the left hand
    image = greenness(image_of(blocks))
    assert image[5, : MIDDLE - 4].mean() > 30
    assert image[5, MIDDLE + 4 :].mean() < 5
    level, up, down = (image_of(flat(), pitch=pitch) for pitch in (0, -60, 60))
    grey = [(np.ptp(x, axis=-1) < 12).mean() for x in (up, level, down)]  # the floor is of stone
    assert grey[0] == 0 < grey[1] < grey[2]
    assert grey[2] > 0.95


def test_the_frustum_is_minecrafts_squeezed_into_the_image():
    """A block fills the part of the image that its angles say, vertically and horizontally."""
    size, distance = 120, 3.0
    blocks = flat()
    blocks[12, FLOOR + 1, 15] = b.LEAVES
    state = scene(blocks)
    state = dataclasses.replace(
        state, player=dataclasses.replace(state.player, position=jnp.array([12.5, FLOOR + 1.5 - 1.62, 12.0]))
    )
    green = greenness(np.asarray(render(state, size, size, SETTINGS)).astype(float)) > 15
    tangent = 2 * np.tan(np.radians(VERTICAL_FOV_DEG / 2))
    rows, columns = green.any(axis=1).sum(), green.any(axis=0).sum()
    assert rows == pytest.approx(size / distance / tangent, abs=2)
    assert columns == pytest.approx(size / distance / tangent / ASPECT, abs=2)


def test_faces_are_shaded_by_their_direction():
    """The same block is darkest on its x sides, lighter on its z sides."""
    along_z = image_of(wall(2, 15, b.STONE))[:8].mean()
    along_x = image_of(wall(0, 15, b.STONE), yaw=-90)[:8].mean()
    assert along_x / along_z == pytest.approx(0.6 / 0.8, rel=0.05)


def test_a_blocks_top_and_sides_have_their_own_textures():
    """A wall of grass blocks is brown from the side but for a strip, a meadow of them is green."""
    side = greenness(image_of(wall(2, 15, b.GRASS))[:8])
    meadow = flat()
    meadow[1:-1, FLOOR - 1, 1:-1] = b.GRASS
    top = greenness(image_of(meadow, pitch=80))
    assert (top > 20).mean() > 0.9
    assert 0.05 < (side > 20).mean() < 0.4


def test_the_block_under_attack_shows_cracks_that_grow():
    blocks = wall(2, 14, b.STONE)
    target = (12, FLOOR + 1, 14)
    darkness = [
        (image_of(blocks) - image_of(blocks, progress=progress, target=target) > 10).sum()
        for progress in (0.0, 0.3, 0.9)
    ]
    assert darkness[0] == 0 < darkness[1] < darkness[2]


def test_the_crosshair_marks_the_middle():
    image = image_of(wall(2, 15, b.LOG))
    assert np.abs(image[MIDDLE, MIDDLE] - image[MIDDLE, MIDDLE + 4]).max() > 40


def rays(blocks, eye, directions, strides, clearance=None, through_water=True) -> raycast.Hit:
    blocks = jnp.asarray(blocks)
    clearance = clearance_of(blocks) if clearance is None else clearance
    directions = jnp.asarray(np.asarray(directions).T, jnp.float32)
    return raycast.cast(blocks, clearance, jnp.asarray(eye, jnp.float32), *directions, strides, through_water)


def test_rays_hit_what_a_march_in_small_steps_hits():
    """The grid traversal against a dense sampling of the same rays, in a random world."""
    rng = np.random.default_rng(1)
    blocks = flat(24, 24)
    blocks[1:-1, FLOOR:-1, 1:-1] = np.where(rng.random((22, 24 - FLOOR - 1, 22)) < 0.05, b.STONE, b.AIR)
    blocks[12, 12, 12] = b.AIR
    eye = np.array([12.4, 12.3, 12.7])
    directions = rng.normal(size=(300, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hit = rays(blocks, eye, directions, 80)
    t = np.arange(0, 30, 0.002)
    cells = np.clip(np.floor(eye + t[:, None, None] * directions).astype(int), 0, 23)
    solid = blocks[tuple(np.moveaxis(cells, -1, 0))] != b.AIR
    expected = t[solid.argmax(axis=0)]
    # A march may step over a corner that the exact traversal touches: nearly all agree, none goes through a wall.
    close = np.abs(np.asarray(hit.distance) - expected) < 0.01
    assert close.mean() > 0.98
    assert (np.asarray(hit.distance) < expected + 0.01).all()


def test_a_known_scene_is_hit_where_geometry_says():
    """Block, face, distance and cell of single rays, exactly; straight ones have components of 0."""
    blocks = flat(24, 24)
    blocks[12, 12, 20], blocks[3, 12, 12], blocks[12, 20, 12] = b.LOG, b.DIRT, b.SAND
    blocks[16, 16, 16] = b.LEAVES
    eye = np.array([12.5, 12.25, 12.75])
    to_corner = np.array([16.0, 16.25, 16.5]) - eye  # a point of the western face
    for direction, block, axis, distance, cell in (
        ((0, 0, 1), b.LOG, 2, 20 - 12.75, (12, 12, 20)),
        ((-1, 0, 0), b.DIRT, 0, 12.5 - 4, (3, 12, 12)),
        ((0, 1, 0), b.SAND, 1, 20 - 12.25, (12, 20, 12)),
        ((0, -1, 0), b.STONE, 1, 12.25 - FLOOR, (12, FLOOR - 1, 12)),
        ((1, 0, 0), b.BARRIER, 0, 23 - 12.5, (23, 12, 12)),
        (to_corner / np.linalg.norm(to_corner), b.LEAVES, 0, np.linalg.norm(to_corner), (16, 16, 16)),
    ):
        hit = rays(blocks, eye, np.array([direction], float), 30)
        assert (int(hit.block[0]), int(hit.axis[0])) == (block, axis)
        assert int(hit.cell[0]) == np.ravel_multi_index(cell, blocks.shape)
        np.testing.assert_allclose(hit.distance[0], distance, rtol=1e-6)


def test_rays_end_alike_however_long_their_strides_are():
    """With the true clearance and with one that says 1 everywhere, which is the plain traversal."""
    state = jax.jit(voxel.make("mine_cobblestone").reset)(jax.random.key(3))
    directions = np.random.default_rng(2).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    eye = np.asarray(physics.eye(state.player))
    one = rays(state.blocks, eye, directions, 200)
    other = rays(state.blocks, eye, directions, 200, clearance=jnp.minimum(state.clearance, 1))
    np.testing.assert_array_equal(one.cell, other.cell)
    np.testing.assert_array_equal(one.axis, other.axis)
    np.testing.assert_allclose(one.distance, other.distance, rtol=1e-5)


def test_rays_end_in_nothing_when_they_make_too_few_strides():
    hit = rays(flat(), [12.5, 10.5, 12.5], [[0.0, 1.0, 0.0]], 4)
    assert int(hit.block[0]) == b.AIR
    assert float(hit.distance[0]) > 1e6


def test_water_stops_rays_from_outside_and_none_from_within():
    blocks = flat(24, 24)
    blocks[1:-1, FLOOR : FLOOR + 3, 1:-1] = b.WATER
    down = [[0.0, -1.0, 0.0]]
    above = rays(blocks, [12.5, 12.5, 12.5], down, 30, through_water=False)
    below = rays(blocks, [12.5, FLOOR + 2.5, 12.5], down, 30, through_water=True)
    assert (int(above.block[0]), int(below.block[0])) == (b.WATER, b.STONE)
    np.testing.assert_allclose([above.distance[0], below.distance[0]], [12.5 - FLOOR - 3, 2.5], rtol=1e-6)
