from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import actions, voxel
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.tasks import TASKS

SMALL = {"size": 24, "height": 20, "view_distance": 24}


@pytest.fixture(scope="module")
def toy():
    """World, jitted reset and jitted step."""
    world = voxel.make("chop_tree", preset="toy", **SMALL)
    return world, jax.jit(world.reset), jax.jit(world.step)


def choose(world, name):
    return {"choice": jnp.array([world.task.actions.names.index(name)])}


def play(toy, seed, choices):
    _, reset, step = toy
    state = reset(jax.random.key(seed))
    rewards = []
    for choice in choices:
        state, timestep = step(state, {"choice": jnp.array([choice])})
        rewards.append(float(timestep.reward))
    return state, rewards, timestep


def random_choices(seed, steps, world):
    return np.random.default_rng(seed).integers(0, world.action_spec["choice"], steps)


def equal(one, other):
    return all(np.array_equal(a, c) for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_the_same_key_and_actions_give_the_same_episode(toy):
    choices = random_choices(0, 60, toy[0])
    first, rewards, _ = play(toy, 3, choices)
    again, same_rewards, _ = play(toy, 3, choices)
    other, _, _ = play(toy, 4, choices)
    assert equal(first, again)
    assert rewards == same_rewards
    assert not equal(first, other)


def test_many_worlds_at_once_are_the_single_ones(toy):
    world, reset, step = toy
    keys = jax.random.split(jax.random.key(5), 4)
    states = jax.jit(jax.vmap(world.reset))(keys)
    step_all = jax.jit(jax.vmap(world.step))
    singles = [reset(key) for key in keys]
    rng = np.random.default_rng(1)
    for _ in range(40):
        choice = rng.integers(0, 8, (4, 1))
        states, _ = step_all(states, {"choice": jnp.asarray(choice)})
        singles = [step(s, {"choice": jnp.asarray(c)})[0] for s, c in zip(singles, choice, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
    for many, one in zip(jax.tree.leaves(states), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_allclose(many, one, atol=1e-5)
    draw = lambda state: world.render(state, 16, 16)
    images = jax.jit(jax.vmap(draw))(states)
    single = np.stack([jax.jit(draw)(jax.tree.map(lambda x, i=i: x[i], states)) for i in range(4)])
    # A texel's border may fall on either side by rounding.
    assert (np.abs(images.astype(int) - single.astype(int)).max(axis=-1) > 3).mean() < 0.01


def test_jit_and_eager_execution_agree(toy):
    world, reset, step = toy
    state = reset(jax.random.key(0))
    action = choose(world, "forward and attack")
    jitted, eager = step(state, action)[0], world.step(state, action)[0]
    np.testing.assert_allclose(jitted.player.position, eager.player.position, atol=1e-5)
    np.testing.assert_array_equal(jitted.blocks, eager.blocks)


def test_a_broken_log_is_a_point_a_count_and_an_item(toy):
    """Walks up to the tree it looks at and holds attack: what random play rarely does."""
    world, _, _ = toy
    straight = voxel.make("chop_tree", preset="toy", spawn_turn=0.0, hills=0, **SMALL)
    setup = straight, jax.jit(straight.reset), jax.jit(straight.step)
    attack = world.task.actions.names.index("forward and attack")
    totals = []
    for seed in range(5):
        before = setup[1](jax.random.key(seed))
        state, rewards, timestep = play(setup, seed, [attack] * 40)
        totals.append(sum(rewards))
        assert sum(rewards) == int(timestep.info["mine_block"][b.LOG]) == int(timestep.info["pickup"][b.LOG])
        assert (np.asarray(before.blocks) == b.LOG).sum() - (np.asarray(state.blocks) == b.LOG).sum() == sum(rewards)
    assert min(totals) >= 1


def test_a_player_who_digs_into_the_tree_scores_more_than_random_play(toy):
    straight = voxel.make("chop_tree", preset="toy", spawn_turn=0.0, **SMALL)
    setup = straight, jax.jit(straight.reset), jax.jit(straight.step)
    attack = straight.task.actions.names.index("forward and attack")
    skilled = np.mean([sum(play(setup, seed, [attack] * 60)[1]) for seed in range(5)])
    random = np.mean([sum(play(toy, seed, random_choices(seed, 60, straight))[1]) for seed in range(5)])
    assert skilled > random + 0.5


def test_dirt_goes_to_the_inventory_whatever_it_was_dug_from():
    world = voxel.make("collect_dirt", preset="toy", **SMALL)
    setup = world, jax.jit(world.reset), jax.jit(world.step)
    down, attack = (world.task.actions.names.index(name) for name in ("look down", "attack"))
    _, rewards, timestep = play(setup, 0, [down] * 7 + [attack] * 30)
    mined, pickup = timestep.info["mine_block"], timestep.info["pickup"]
    assert mined[b.GRASS] >= 1
    assert pickup[b.GRASS] == 0
    assert int(pickup[b.DIRT]) == int(mined[b.GRASS] + mined[b.DIRT]) == sum(rewards) >= 2


def test_the_time_limit_truncates_and_nothing_terminates():
    world = voxel.make("chop_tree", time_limit=3, **SMALL)
    setup = world, jax.jit(world.reset), jax.jit(world.step)
    for steps, truncated in ((2, False), (3, True)):
        _, _, timestep = play(setup, 0, [0] * steps)
        assert bool(timestep.truncated) == truncated
        assert not timestep.terminated


def test_frame_skip_repeats_keys_and_turn(toy):
    world, reset, step = toy
    one_tick = voxel.make("chop_tree", preset="toy", frame_skip=1, **SMALL)
    action = choose(world, "turn left")
    state = reset(jax.random.key(0))
    skipped, _ = step(state, action)
    for _ in range(4):
        state, _ = one_tick.step(state, action)
    np.testing.assert_allclose(skipped.player.yaw, state.player.yaw, atol=1e-4)
    np.testing.assert_allclose(skipped.player.position, state.player.position, atol=1e-5)


def test_the_tasks_choices_and_vpts_actions_do_the_same(toy):
    world, reset, _ = toy
    vpt = voxel.make("chop_tree", preset="toy", action_set="vpt", **SMALL)
    assert vpt.action_spec == {"buttons": 8641, "camera": 121}
    state = reset(jax.random.key(2))
    step, vpt_step = jax.jit(world.step), jax.jit(vpt.step)
    for choice in range(world.action_spec["choice"]):
        agent = {
            "buttons": jnp.asarray(world.task.actions.buttons[choice])[None],
            "camera": jnp.asarray(world.task.actions.camera[choice])[None],
        }
        assert equal(step(state, {"choice": jnp.array([choice])})[0], vpt_step(state, agent)[0])


def test_the_camera_counts_only_with_its_meta_key(toy):
    world = voxel.make("chop_tree", preset="vanilla", action_set="vpt", **SMALL)
    state = toy[1](jax.random.key(0))
    encoded = actions.encode({**{key: np.zeros(1, int) for key in actions.BUTTONS}, "camera": np.array([[0.0, 10.0]])})
    off = {"buttons": jnp.zeros(1, jnp.int32), "camera": jnp.asarray(encoded["camera"][0])}
    on = {name: jnp.asarray(component[0]) for name, component in encoded.items()}
    turned = [float(world.step(state, action)[0].player.yaw - state.player.yaw) for action in (off, on)]
    assert turned[0] == 0
    assert turned[1] % 360 == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"task": "chop_trees"}, "did you mean 'chop_tree'"),
        ({"preset": "vanila"}, "did you mean 'vanilla'"),
        ({"action_set": "both"}, "discrete, vpt"),
        ({"break_speed": 3}, "did you mean 'break_speed_multiplier'"),
        ({"hills": -1}, "hills=-1 is not a number of 0 or more"),
        ({"size": 4}, "size=4 is below its least value 24"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(kwargs, says):
    with pytest.raises(ValueError, match=says):
        voxel.make(**kwargs)


def test_every_task_pays_for_something_that_can_be_broken():
    for task in TASKS.values():
        assert task.mine_block
        assert all(b.HARDNESS[block] > 0 for block in task.mine_block)
