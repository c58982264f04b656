"""The pool of embedded worlds keeps the contract of every pool."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from minestudio_jax.envs import voxel
from minestudio_jax.policies import heads
from minestudio_jax.rollout.voxel_pool import VoxelEnvPool, voxel_spec
from minestudio_jax.utils.task_files import load_task

LIMIT = 5
ENVS = 3


@pytest.fixture(scope="module")
def world():
    return voxel.make("chop_tree", size=24, height=20, ray_strides=12, time_limit=LIMIT)


@pytest.fixture(scope="module")
def played(world):
    """Twelve receipts with random actions."""
    pool = VoxelEnvPool(world, ENVS, 7, 16, 12)
    rng = np.random.default_rng(0)
    received = []
    for _ in range(12):
        steps = pool.recv(1.0)
        received.append(steps)
        pool.send({"choice": rng.integers(0, 8, (ENVS, 1)).astype(np.int32)}, steps.env_id)
    return received


def test_the_spec_is_known_without_a_pool(world):
    spec = voxel_spec(world, 16, 12)
    assert spec.observation["image"].shape == (16, 12, 3)
    assert spec.action == {"choice": 8}
    assert VoxelEnvPool(world, 1, 0, 16, 12).spec == spec


def test_every_receipt_has_every_world_and_no_aliases(played):
    for steps in played:
        assert steps.env_id.tolist() == list(range(ENVS))
        assert [obs["image"].shape for obs in steps.obs] == [(16, 12, 3)] * ENVS
        assert steps.obs[0]["image"].dtype == np.uint8
        assert not steps.failed.any()
    images = [obs["image"] for steps in played for obs in steps.obs]
    assert not any(np.shares_memory(a, c) for a in images for c in images if a is not c)
    assert not np.array_equal(images[0], images[3 * ENVS])


def test_episodes_begin_and_are_truncated_on_time(played):
    first = np.array([steps.first for steps in played])
    truncated = np.array([steps.truncated for steps in played])
    assert first.all(axis=1).tolist() == [t % LIMIT == 0 for t in range(12)]
    assert truncated.all(axis=1).tolist() == [t % LIMIT == 0 and t > 0 for t in range(12)]
    assert not np.array([steps.terminated for steps in played]).any()
    assert played[0].reward.tolist() == [0] * ENVS


def test_the_last_observation_of_an_episode_is_not_the_first_of_the_next(played):
    for t, steps in enumerate(played):
        if t in (LIMIT, 2 * LIMIT):
            for final, new in zip(steps.final_obs, steps.obs, strict=True):
                assert (final["image"] != new["image"]).any()
            assert steps.info[0].keys() >= {"mine_block", "success", "health"}
        else:
            assert steps.final_obs == [None] * ENVS


def test_the_final_observation_is_the_worlds_own(world):
    """Against the world stepped by hand."""
    pool = VoxelEnvPool(world, 1, 7, 16, 12)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), 0)
    state = jax.jit(world.reset)(key)
    step, draw = jax.jit(world.step), jax.jit(lambda s: world.render(s, 16, 12))
    action = {"choice": np.array([[2]], np.int32)}
    steps = pool.recv(1.0)
    np.testing.assert_allclose(steps.obs[0]["image"].astype(int), draw(state), atol=3)
    for _ in range(LIMIT):
        pool.send(action, steps.env_id)
        steps = pool.recv(1.0)
        state, _ = step(state, {"choice": np.array([2])})
    difference = np.abs(steps.final_obs[0]["image"].astype(int) - np.asarray(draw(state)).astype(int))
    assert (difference > 3).mean() < 0.02


def test_seeds_tell_pools_apart_and_repeat_them(world):
    def first(seed):
        return [obs["image"] for obs in VoxelEnvPool(world, 2, seed, 16, 12).recv(1.0).obs]

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))
    assert not np.array_equal(*first(1))


def test_nothing_is_ready_before_the_actions_are_sent(world):
    pool = VoxelEnvPool(world, 2, 0, 16, 12)
    steps = pool.recv(1.0)
    assert pool.recv(0.01) is None
    with pytest.raises(ValueError, match="every one of them, in order"):
        pool.send({"choice": np.zeros((1, 1), np.int32)}, steps.env_id[:1])


def test_what_the_task_rules_out_is_part_of_every_observation():
    """D-61: acting, learning and the value of a cut episode's end see the same mask."""
    task = dataclasses.replace(load_task("chop_tree"), mask=("attack",))
    world = voxel.make(task, size=24, height=20, ray_strides=12, time_limit=LIMIT)
    pool = VoxelEnvPool(world, 2, 7, 16, 12)
    heads.check_masks(pool.spec)
    assert pool.spec.observation["action_mask.choice"].shape == (8,)
    for _ in range(LIMIT + 1):
        steps = pool.recv(1.0)
        seen = [*steps.obs, *(obs for obs in steps.final_obs if obs is not None)]
        for obs in seen:
            assert set(obs) == set(pool.spec.observation)
            assert obs["action_mask.choice"].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
        pool.send({"choice": np.zeros((2, 1), np.int32)}, steps.env_id)
    assert len(seen) == 4
    assert set(steps.info[0]) >= {"reward/log", "success"}
