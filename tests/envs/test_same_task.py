"""A task is the same whether the embedded world plays it or callbacks do over a simulator of the game."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from minestudio_jax.envs import actions, voxel
from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.envs.voxel.statistics import as_dict
from minestudio_jax.utils.task_files import load_task
from tests.envs.voxel_simulator import VoxelSimulator, controls

SMALL = {"size": 24, "height": 20, "break_speed_multiplier": 20.0, "attack_edge": False}


def script(*parts):
    """Agent actions: (ticks, keys, pitch, yaw)."""
    played = []
    for ticks, keys, pitch, yaw in parts:
        pressed = {name: np.array([name in keys], int) for name in actions.BUTTONS}
        agent = actions.encode({**pressed, "camera": np.array([[pitch, yaw]], float)})
        played += [{name: array[0] for name, array in agent.items()}] * ticks
    return played


# Task -> its time limit, what is played, and what must have been paid in the end for the comparison to mean something.
PLAYED = {
    "collect_dirt": (50, script((6, (), 10, 0), (44, ("attack",), 0, 0)), {"dirt"}),
    "build_pillar": (100, script((10, (), 10, 0), (90, ("jump", "use"), 0, 0)), {"height"}),
    "combat_zombie": (350, script((350, ("attack",), 0, 5.8)), {"death"}),
}


@pytest.fixture(scope="module", params=PLAYED)
def both(request):
    """Steps of one episode, (reward, terminated, truncated, info), in the embedded world and through callbacks."""
    limit, actions_played, pays = PLAYED[request.param]
    task = dataclasses.replace(load_task(request.param), time_limit=limit, fast_reset=None)
    world = voxel.make(task, "vanilla", "minerl", **SMALL)
    reset, step = jax.jit(world.reset), jax.jit(world.step)
    state, embedded = reset(jax.random.key(3)), []
    begun = state
    for action in actions_played:
        keys = {n: a[0] for n, a in actions.decode({n: a[None] for n, a in action.items()}).items()}
        state, timestep = step(state, controls(keys))
        told = jax.device_get(timestep)
        embedded.append((float(told.reward), bool(told.terminated), bool(told.truncated), as_dict(told.info)))
        if told.terminated or told.truncated:
            break
    simulator = VoxelSimulator(world, reset, step)
    # The mobs are there already: their places are drawn otherwise.
    env = MinecraftEnvironment(simulator, callbacks_for(dataclasses.replace(task, mobs=()), settle_ticks=0))
    env.reset(seed=3)
    for mine, theirs in zip(jax.tree.leaves(begun), jax.tree.leaves(simulator.state), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    wrapped = []
    for action in actions_played:
        wrapped.append(env.step(action)[1:])
        if wrapped[-1][1] or wrapped[-1][2]:
            break
    return task, pays, embedded, wrapped


def test_rewards_are_the_same_step_by_step(both):
    _, _, embedded, wrapped = both
    np.testing.assert_allclose([step[0] for step in wrapped], [step[0] for step in embedded], atol=1e-6)


def test_it_ends_in_the_same_step_and_in_the_same_way(both):
    task, _, embedded, wrapped = both
    assert [step[1:3] for step in wrapped] == [step[1:3] for step in embedded]
    assert any(embedded[-1][1:3])
    assert embedded[-1][1] == (task.name == "combat_zombie")


def test_the_last_step_tells_the_same(both):
    task, pays, embedded, wrapped = both
    ours, theirs = embedded[-1][3], wrapped[-1][3]
    terms = {f"reward/{term.name}" for term in task.reward}
    assert terms | {"success", "health", "food_level"} <= set(theirs)
    for name in terms:
        assert theirs[name] == pytest.approx(ours[name]), name
    assert {name for name in pays if ours[f"reward/{name}"]} == pays
    assert theirs["success"] is ours["success"]
    for event in ("mine_block", "pickup", "use_item", "kill_entity", "custom"):
        assert theirs[event] == ours[event], event
