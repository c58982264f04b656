from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import minestudio_jax.envs.voxel.gymnasium_env  # noqa: F401 (registers)
from minestudio_jax.envs.voxel.world import playable_tasks


def make(name, **kwargs):
    options = {"size": 24, "height": 20, "ray_strides": 8, "time_limit": 6, **kwargs}
    return gymnasium.make(f"minestudio_jax/{name}-v0", image_size=(16, 16), **options)


@pytest.mark.parametrize("action_set", ["discrete", "vpt"])
def test_gymnasiums_own_checker_is_content(action_set):
    check_env(make("ChopTree", action_set=action_set).unwrapped, skip_render_check=True)


def test_every_task_is_registered():
    names = {"".join(part.capitalize() for part in task.split("_")) for task in playable_tasks()}
    assert {f"minestudio_jax/{name}-v0" for name in names} <= set(gymnasium.registry)


def test_an_episode_ends_by_the_worlds_time_limit_and_tells_its_statistics():
    env = make("CollectDirt", break_speed_multiplier=100.0)
    observation, _ = env.reset(seed=1)
    assert observation["image"].shape == (16, 16, 3)
    down, attack = (env.unwrapped.world.choices.index(name) for name in ("look down", "attack"))
    total = 0.0
    for step in range(6):
        _, reward, terminated, truncated, info = env.step(down if step < 3 else attack)
        total += reward
        assert truncated == (step == 5)
        assert not terminated
    assert total >= 1
    mined = info["mine_block"]
    assert mined.get("dirt", 0) + mined.get("grass_block", 0) == info["pickup"]["dirt"] == total


def test_a_seed_gives_one_world():
    env = make("HuntCow")
    one, again, other = (env.reset(seed=seed)[0]["image"] for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_it_renders_as_large_as_minecraft_does():
    env = gymnasium.make("minestudio_jax/ChopTree-v0", size=24, ray_strides=8, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (360, 640, 3)
