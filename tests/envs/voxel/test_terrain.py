from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from minestudio_jax.envs.biomes import group_of
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import terrain
from minestudio_jax.envs.voxel.state import WorldSettings

SETTINGS = WorldSettings(biome="forest", caves=False, ores=0.0)


@pytest.fixture(scope="module")
def worlds():
    generate = jax.jit(lambda key: terrain.generate(key, SETTINGS))
    return [tuple(map(np.asarray, generate(jax.random.key(seed))))[:3] for seed in range(20)]


def test_the_world_is_enclosed(worlds):
    for blocks, _, _ in worlds:
        for face in (blocks[0], blocks[-1], blocks[:, :, 0], blocks[:, :, -1], blocks[:, -1], blocks[:, 0]):
            assert (face != b.AIR).all()


def test_ground_is_layered_and_gently_hilly(worlds):
    for blocks, _, _ in worlds:
        inner = blocks[2:-2, :, 2:-2]
        top = (inner == b.GRASS).argmax(axis=1)
        assert top.min() >= SETTINGS.ground
        assert top.max() <= SETTINGS.ground + terrain.BIOMES["forest"].hills
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
    blocks, *_ = jax.jit(lambda key: terrain.generate(key, WorldSettings(biome="forest", hills=0)))(jax.random.key(0))
    top = (np.asarray(blocks)[2:-2, :, 2:-2] == b.GRASS).argmax(axis=1)
    assert len(np.unique(top)) == 1


@functools.cache
def generator(settings):
    return jax.jit(lambda key: terrain.generate(key, settings))


def generated(biome, seed=0, **settings):
    return jax.tree.map(np.asarray, generator(WorldSettings(biome=biome, **settings))(jax.random.key(seed)))


@pytest.mark.parametrize("biome", terrain.BIOMES)
def test_every_biome_gives_a_place_to_stand(biome):
    for seed in range(3):
        land = generated(biome, seed)
        x, y, z = np.floor(land.position).astype(int)
        assert (land.blocks[x, y : y + 2, z] == b.AIR).all()
        below = land.blocks[x, y - 1, z]
        assert b.SOLID[below] or below == b.WATER


def test_biomes_have_their_own_surface():
    columns = {biome: generated(biome).blocks[2:-2, :-1, 2:-2] for biome in terrain.BIOMES}

    def surface(biome):
        blocks = columns[biome]
        bare = np.where(np.isin(blocks, [b.AIR, b.WATER, b.LOG, b.LEAVES]), 0, blocks)
        top = bare.shape[1] - 1 - (bare[:, ::-1] != 0).argmax(axis=1)
        x, z = np.mgrid[: bare.shape[0], : bare.shape[2]]
        return bare[x, top, z]

    assert (surface("plains") == b.GRASS).all()
    assert (surface("desert") == b.SAND).all()
    assert 0.1 < (surface("mountain") == b.STONE).mean() < 0.95
    assert 0.05 < (surface("beach") == b.SAND).mean() < 0.95
    assert (columns["beach"] == b.WATER).any()
    assert not (columns["plains"] == b.WATER).any()
    trees = {biome: (columns[biome] == b.LOG).sum() for biome in columns}
    assert trees["forest"] > 2 * trees["plains"] > trees["desert"] == 0


def test_water_fills_every_hollow_up_to_one_level():
    blocks = generated("beach").blocks[2:-2, :, 2:-2]
    level = WorldSettings().ground + terrain.BIOMES["beach"].water
    wet = np.argwhere(blocks == b.WATER)
    assert wet[:, 1].max() == level - 1
    assert not ((blocks[:, : level - 1] == b.WATER) & (blocks[:, 1:level] == b.AIR)).any()


def test_ores_get_rarer_with_their_worth_and_the_precious_ones_lie_deep():
    land = generated("mountain", ground=24, height=48, caves=False)
    found = {name: np.argwhere(land.blocks == b.ID[name]) for name in ("coal_ore", "iron_ore", "diamond_ore")}
    assert len(found["coal_ore"]) > len(found["iron_ore"]) > len(found["diamond_ore"]) > 0
    assert found["diamond_ore"][:, 1].max() < 0.3 * 24
    assert found["coal_ore"][:, 1].max() > 0.6 * 24
    assert sum((generated("mountain", ores=0.0).blocks == ore).sum() for ore, _, _ in terrain.ORES) == 0


def test_caves_are_hollows_in_the_rock():
    solid = generated("plains", ground=24, height=48, caves=False, ores=0.0)
    hollow = generated("plains", ground=24, height=48, caves=True, ores=0.0)
    carved = solid.blocks != hollow.blocks
    assert 0.01 < carved[2:-2, 2:20, 2:-2].mean() < 0.4
    assert (hollow.blocks[carved] == b.AIR).all()
    assert (solid.blocks[carved] == b.STONE).all()


def test_the_goal_is_a_white_pillar_at_its_distance():
    for seed in range(5):
        land = generated("plains", seed, goal_distance=12.0, tree_chance=0.0)
        assert abs(np.hypot(*(land.goal - land.position)[[0, 2]]) - 12) < 1.5
        x, y, z = np.floor(land.goal).astype(int)
        assert (land.blocks[x, y : y + terrain.GOAL_HEIGHT, z] == b.ID["white_wool"]).all()


def test_biomes_are_known_by_minecrafts_names():
    """Of the biome itself, and for mountains also of the group that a mission asks for."""
    assert [terrain.biome_called(name) for name in ("mountains", "extreme_hills", "mountain")] == ["mountain"] * 3
    assert (terrain.biome_called("wooded_hills"), terrain.biome_called("beach")) == ("hills", "beach")
    for biome in terrain.BIOMES:
        assert terrain.biome_called(terrain.minecraft_name(biome)) == biome
        assert group_of(terrain.minecraft_name(biome))
