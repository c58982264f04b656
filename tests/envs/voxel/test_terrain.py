from __future__ import annotations

import jax
import numpy as np
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import terrain
from minestudio_jax.envs.voxel.state import WorldSettings

SETTINGS = WorldSettings()


@pytest.fixture(scope="module")
def worlds():
    generate = jax.jit(lambda key: terrain.generate(key, SETTINGS))
    return [tuple(map(np.asarray, generate(jax.random.key(seed)))) for seed in range(20)]


def test_the_world_is_enclosed(worlds):
    for blocks, _, _ in worlds:
        for face in (blocks[0], blocks[-1], blocks[:, :, 0], blocks[:, :, -1], blocks[:, -1], blocks[:, 0]):
            assert (face != b.AIR).all()


def test_ground_is_layered_and_gently_hilly(worlds):
    for blocks, _, _ in worlds:
        inner = blocks[2:-2, :, 2:-2]
        top = (inner == b.GRASS).argmax(axis=1)
        assert top.min() >= terrain.GROUND
        assert top.max() <= terrain.GROUND + SETTINGS.hills
        assert max(np.abs(np.diff(top, axis=axis)).max() for axis in (0, 1)) <= 1  # a jump gets everywhere
        x, z = np.mgrid[: len(top), : len(top)]
        assert (inner[x, top - 1, z] == b.DIRT).all()
        assert (inner[x, top - 4, z] == b.STONE).all()


def test_trees_stand_on_the_ground_with_leaves_on_top(worlds):
    for blocks, _, _ in worlds:
        logs = (blocks == b.LOG).sum(axis=1)
        trunks = logs[logs > 0]
        assert len(trunks) > 5
        # The one at the start may have lost blocks to the clearing only if the player stood in it, which he never does.
        assert set(trunks) <= {4, 5, 6}
        for x, z in np.argwhere(logs):
            column = blocks[x, :, z]
            lowest, highest = np.flatnonzero(column == b.LOG)[[0, -1]]
            assert column[lowest - 1] == b.GRASS
            assert (column[lowest : highest + 1] == b.LOG).all()
            assert column[highest + 1] in (b.LEAVES, b.AIR)


def test_the_player_begins_on_free_ground_near_a_tree_and_looks_towards_it(worlds):
    for blocks, position, yaw in worlds:
        x, y, z = np.floor(position).astype(int)
        assert (blocks[x, y : y + 2, z] == b.AIR).all()
        assert blocks[x, y - 1, z] == b.GRASS
        trees = np.argwhere((blocks == b.LOG).any(axis=1)) + 0.5 - position[[0, 2]]
        distance = np.hypot(*trees.T)
        angle = np.degrees(np.arctan2(-trees[:, 0], trees[:, 1])) - yaw
        off = np.abs((angle + 180) % 360 - 180)
        near = distance < SETTINGS.spawn_distance + 1.5
        assert (off[near] <= SETTINGS.spawn_turn + 1).any()


def test_a_key_gives_one_world_and_another_key_another():
    generate = jax.jit(lambda key: terrain.generate(key, SETTINGS))
    first, again, other = (generate(jax.random.key(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, c) for a, c in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_no_hills_is_flat():
    blocks, _, _ = jax.jit(lambda key: terrain.generate(key, WorldSettings(hills=0)))(jax.random.key(0))
    top = (np.asarray(blocks)[2:-2, :, 2:-2] == b.GRASS).argmax(axis=1)
    assert len(np.unique(top)) == 1
