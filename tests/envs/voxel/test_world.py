from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import actions, voxel
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items, physics
from minestudio_jax.envs.voxel.action_sets import ACTION_SETS
from minestudio_jax.envs.voxel.statistics import as_dict

SMALL = {"size": 24, "height": 20, "ray_strides": 12}


@pytest.fixture(scope="module")
def toy():
    """World, jitted reset and jitted step."""
    world = voxel.make("chop_tree", preset="toy", **SMALL)
    return world, jax.jit(world.reset), jax.jit(world.step)


def choose(world, name):
    return {"choice": jnp.array([world.choices.index(name)])}


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
    attack = world.choices.index("forward and attack")
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
    attack = straight.choices.index("forward and attack")
    skilled = np.mean([sum(play(setup, seed, [attack] * 60)[1]) for seed in range(5)])
    random = np.mean([sum(play(toy, seed, random_choices(seed, 60, straight))[1]) for seed in range(5)])
    assert skilled > random + 0.5


def test_dirt_goes_to_the_inventory_whatever_it_was_dug_from():
    world = voxel.make("collect_dirt", preset="toy", **SMALL)
    setup = world, jax.jit(world.reset), jax.jit(world.step)
    down, attack = (world.choices.index(name) for name in ("look down", "attack"))
    _, rewards, timestep = play(setup, 0, [down] * 7 + [attack] * 30)
    mined, pickup = timestep.info["mine_block"], timestep.info["pickup"]
    assert mined[b.GRASS] >= 1
    assert pickup[b.GRASS] == 0
    assert int(pickup[b.DIRT]) == int(mined[b.GRASS] + mined[b.DIRT]) == sum(rewards) >= 2


def test_an_episode_lasts_as_long_as_the_task_says_unless_preset_or_settings_say_otherwise():
    """The task counts ticks, the world steps."""
    for limit, arguments in (
        (6000, {"preset": "vanilla"}),
        (1500, {"preset": "vanilla", "frame_skip": 4}),
        (100, {"preset": "toy"}),
        (1500, {"preset": "toy", "time_limit": 0}),
        (7, {"preset": "toy", "time_limit": 7}),
    ):
        assert voxel.make("mine_iron", **arguments).settings.time_limit == limit


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
    choices = ACTION_SETS[world.task.actions].actions
    for choice in range(world.action_spec["choice"]):
        agent = {
            "buttons": jnp.asarray(choices.buttons[choice])[None],
            "camera": jnp.asarray(choices.camera[choice])[None],
        }
        assert equal(step(state, {"choice": jnp.array([choice])})[0], vpt_step(state, agent)[0])


def test_the_camera_counts_only_with_its_meta_key():
    world = voxel.make("chop_tree", preset="vanilla", action_set="vpt", **SMALL)
    state = jax.jit(world.reset)(jax.random.key(0))
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
        ({"action_set": "both"}, "discrete, vpt, minerl"),
        ({"break_speed": 3}, "did you mean 'break_speed_multiplier'"),
        ({"hills": -2}, "hills=-2 is below its least value -1"),
        ({"hills": 2.5}, "hills=2.5 is not an integer"),
        ({"hud": 1}, "hud=1 must be true or false"),
        ({"biome": "forrest"}, "did you mean 'forest'"),
        ({"size": 4}, "size=4 is below its least value 24"),
        ({"ground": 30}, r"height=24 is too low for ground=30 with hills of 3 .*set height=39 or more"),
        ({"biome": "mountain", "ground": 11}, r"hills of 8 blocks in biome='mountain'.*set height=25"),
        ({"task": "navigate", "goal_distance": 0}, r"'approach_one_block' needs a goal.*goal_distance=0 puts none"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(kwargs, says):
    with pytest.raises(ValueError, match=says):
        voxel.make(**kwargs)


def test_the_lowest_world_that_is_made_has_room_on_its_highest_ground():
    world = voxel.make("chop_tree", preset="vanilla", ground=7, hills=7, tree_chance=0.0, **SMALL)
    top = world.settings.height - 1 - (world.settings.ground + 7)  # from the highest ground to the wall above
    assert top > 1 + physics.PLAYER.height + 1.25  # which a jump reaches


def test_minerls_dictionary_does_what_vpts_action_does():
    minerl, vpt = (voxel.make("build_pillar", preset="vanilla", action_set=face, **SMALL) for face in ("minerl", "vpt"))
    state = jax.jit(vpt.reset)(jax.random.key(2))
    step, vpt_step = jax.jit(minerl.step), jax.jit(vpt.step)
    for pressed, camera in (
        (("forward", "sprint"), (0.0, 0.0)),
        (("use", "jump"), (10.0, 0.0)),
        (("hotbar.3",), (0.0, -1.61)),
    ):
        keys = {key: np.array([key in pressed], int) for key in actions.BUTTONS}
        agent = actions.encode({**keys, "camera": np.array([camera])})
        decoded = actions.decode(agent)
        sent = {key: jnp.asarray(value[0]) for key, value in decoded.items()}
        state_a, state_b = step(state, sent)[0], vpt_step(state, {k: jnp.asarray(v[0]) for k, v in agent.items()})[0]
        assert equal(state_a, state_b)
        state = state_a
    assert int(state.inventory.selected) == 2


def test_a_pillar_is_built_by_jumping_and_placing():
    world = voxel.make("build_pillar", preset="toy", **SMALL)
    setup = world, jax.jit(world.reset), jax.jit(world.step)
    down, build = (world.choices.index(name) for name in ("look down", "jump and use"))
    state, rewards, timestep = play(setup, 0, [down] * 7 + [build] * 30)
    height = int(state.player.position[1] - state.start[1])
    assert height >= 5
    assert sum(rewards) == pytest.approx(int(timestep.info["use_item"][b.DIRT]), abs=1) == pytest.approx(height, abs=1)
    assert timestep.info["success"]


def test_the_tool_chain_to_iron_can_be_walked():
    """Craft, place, craft again, dig down with the pickaxe: every link of it pays."""
    world = voxel.make("mine_iron", preset="toy", break_speed_multiplier=20.0, time_limit=400, **SMALL)
    setup = world, jax.jit(world.reset), jax.jit(world.step)
    at = world.choices.index
    opening = [at("craft stick"), at("craft crafting_table")] + [at("look down")] * 3
    # Planks, sticks and the table lie in the first three slots.
    opening += [at("hold item 3"), at("use"), at("craft wooden_pickaxe")]
    _, rewards, timestep = play(setup, 1, opening)
    assert sum(rewards) == pytest.approx(0.5 + 0.5 + 0.5 + 1.0)
    crafted = np.asarray(timestep.info["craft_item"])
    assert crafted[items.ID["stick"]] == 4
    assert crafted[items.ID["wooden_pickaxe"]] == 1


def test_dropped_items_lie_about_until_they_are_touched():
    """With Minecraft's own rules: dirt under the feet is broken, falls, and is picked up half a second later."""
    world = voxel.make("collect_dirt", preset="vanilla", action_set="minerl", **SMALL)
    state, step = jax.jit(world.reset)(jax.random.key(0)), jax.jit(world.step)
    seen, picked = 0, 0
    for tick in range(80):
        state, timestep = step(state, {"attack": jnp.int32(1), "camera": jnp.array([10.0 * (tick < 9), 0.0])})
        seen = max(seen, int((state.drops.count > 0).sum()))
        picked = int(timestep.info["pickup"][b.DIRT])
        assert picked <= int(timestep.info["mine_block"].sum())
    assert seen >= 1
    assert picked >= 1
    assert int(state.inventory.count[0]) == picked


def test_time_goes_on_in_vanilla_and_nights_are_dark():
    world = voxel.make("chop_tree", preset="vanilla", start_time=11990, **SMALL)
    state, step = jax.jit(world.reset)(jax.random.key(0)), jax.jit(world.step)
    assert int(step(state, choose(world, "attack"))[0].time) == 11991
    draw = jax.jit(lambda s: world.render(s, 16, 16))
    light = [float(draw(dataclasses.replace(state, time=jnp.int32(time))).mean()) for time in (6000, 13000, 18000)]
    assert light[0] > 1.5 * light[1] > 1.5 * light[2] * 0.99
    assert light[2] > 10  # one still sees something


def test_the_hud_shows_health_and_what_is_in_the_hand():
    world = voxel.make("hunt_cow", preset="vanilla", **SMALL)
    state, draw = jax.jit(world.reset)(jax.random.key(0)), jax.jit(lambda s: world.render(s, 90, 160))
    full = np.asarray(draw(state)).astype(int)
    hurt = draw(dataclasses.replace(state, vitals=dataclasses.replace(state.vitals, health=jnp.float32(5.0))))
    empty = draw(dataclasses.replace(state, inventory=dataclasses.replace(state.inventory, selected=jnp.int32(4))))
    rows, columns = np.nonzero(np.abs(full - np.asarray(hurt)).max(axis=-1))
    assert rows.min() > 75
    assert columns.max() < 80
    rows, columns = np.nonzero(np.abs(full - np.asarray(empty)).max(axis=-1) > 10)
    assert (columns > 120).any()


def test_a_mob_is_seen_where_it_stands():
    world = voxel.make("hunt_cow", preset="toy", **SMALL)
    state, draw = jax.jit(world.reset)(jax.random.key(0)), jax.jit(lambda s: world.render(s, 33, 33))
    ahead = (
        state.player.position
        + jnp.array([-jnp.sin(jnp.radians(state.player.yaw)), 0.0, jnp.cos(jnp.radians(state.player.yaw))]) * 2
    )
    nobody = dataclasses.replace(state, mobs=dataclasses.replace(state.mobs, kind=jnp.zeros_like(state.mobs.kind)))
    somebody = dataclasses.replace(
        nobody,
        mobs=dataclasses.replace(
            state.mobs, kind=state.mobs.kind.at[1:].set(0), position=state.mobs.position.at[0].set(ahead)
        ),
    )
    changed = np.abs(np.asarray(draw(nobody)).astype(int) - np.asarray(draw(somebody)).astype(int)).max(axis=-1) > 20
    rows, columns = np.nonzero(changed)
    assert changed.mean() > 0.02
    assert abs(columns.mean() - 16) < 3
    assert rows.mean() > 18


def task_of(**values):
    term = {"name": "log", "event": "mine_block", "objects": ["oak_log"], "reward": 1.0}
    return task_from_dict({"name": "t", "text": "t", "reward": [term], **values}, "here")


def test_events_of_a_goal_need_one():
    term = {"name": "there", "event": "custom", "objects": ["reach_goal"], "reward": 1.0}
    with pytest.raises(
        ValueError, match=r"task t: reward 'there': custom of 'reach_goal' needs a goal.*set it above 0"
    ):
        voxel.make(task_of(reward=[term]), **SMALL)
    assert voxel.make(task_of(reward=[term], world={"goal_distance": 8}), **SMALL)


def test_choices_that_craft_need_a_task_with_crafting():
    with pytest.raises(ValueError, match=r"actions='crafting' has choices that craft.*set crafting: true"):
        voxel.make(task_of(actions="crafting"), **SMALL)
    assert voxel.make(task_of(actions="crafting", crafting=True), **SMALL)


def test_a_masked_key_is_never_down_and_the_choices_that_press_it_are_said_not_to_be_there():
    """D-61: in the task's own small set as in VPT's."""
    discrete = voxel.make(task_of(mask=["attack", "camera"]), **SMALL)
    left = [name for name, there in zip(discrete.choices, discrete.action_masks["choice"], strict=True) if there]
    assert left == ["forward", "forward and jump"]
    free = voxel.make(task_of(), **SMALL)
    assert free.action_masks == {}
    assert voxel.make(task_of(mask=[]), **SMALL).action_masks["choice"].all()
    state = jax.jit(free.reset)(jax.random.key(0))
    both = choose(free, "forward and attack")
    step = jax.jit(discrete.step)
    forward, _ = step(state, choose(free, "forward"))
    masked, _ = step(state, both)
    np.testing.assert_array_equal(masked.player.position, forward.player.position)
    assert not masked.hands.attack_was_down
    turned, _ = step(state, choose(free, "turn left"))
    assert float(turned.player.yaw) == float(state.player.yaw)
    vpt = voxel.make(task_of(mask=["attack"]), action_set="vpt", **SMALL)
    assert set(vpt.action_masks) == set(vpt.action_spec)
    keys = {name: np.array([name == "attack"]) for name in actions.BUTTONS}
    agent = actions.encode({**keys, "camera": np.zeros((1, 2))})
    assert vpt.action_masks["buttons"][agent["buttons"][0, 0]] == 0
    after, _ = jax.jit(vpt.step)(state, {name: jnp.asarray(a[0]) for name, a in agent.items()})
    assert not after.hands.attack_was_down


def test_the_player_begins_at_one_of_the_tasks_places_in_the_world_of_its_seed():
    places = [{"position": [8, 15, 9], "seed": 4}, {"position": [12, 15, 10]}, {"seed": 5}]
    world = voxel.make(task_of(spawn=places), **SMALL)
    reset = jax.jit(world.reset)
    worlds: dict[tuple, set] = {}
    for seed in range(24):
        state = reset(jax.random.key(seed))
        blocks = np.asarray(state.blocks).tobytes()
        where = tuple(state.player.position.tolist())
        worlds.setdefault(where if where[1] == 15 else "its own", set()).add(blocks)
        np.testing.assert_array_equal(state.start, state.player.position)
    assert {where: len(blocks) for where, blocks in worlds.items() if where != (12, 15, 10)} == {
        (8, 15, 9): 1,
        "its own": 1,
    }
    assert len(worlds[12, 15, 10]) > 2


def test_an_episode_begins_after_the_tasks_commands_and_counts_nothing_of_them():
    commands = ["/give @p minecraft:stone_axe 1", "/summon minecraft:cow ~2 ~ ~", "/setblock ~ ~3 ~ minecraft:obsidian",
                "/time set 9000", "/tp @p ~1 ~ ~"]  # fmt: skip
    world = voxel.make(task_of(commands=commands, biome="plains", mobs={"pig": 2}, time=100), **SMALL)
    state = jax.jit(world.reset)(jax.random.key(1))
    assert items.NAMES[int(state.inventory.item[0])] == "stone_axe"
    assert np.asarray(state.mobs.kind).tolist() == [3, 3, 1]
    assert (np.asarray(state.blocks) == b.ID["obsidian"]).sum() == 1
    assert int(state.time) == 9000
    np.testing.assert_array_equal(state.start, state.player.position)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.statistics))
    attacked, _ = jax.jit(world.step)(
        state, choose(world, "attack")
    )  # compiled with mobs, though only one was summoned
    assert attacked.mobs.kind.shape == (3,)


def test_the_inventory_is_filled_by_slots_and_by_chance():
    inventory = [{"item": "dirt", "count": [1, 3], "slot": "random"}, {"item": "iron_axe", "slot": 0},
                 {"item": ["sand", "gravel"], "count": [0, 1], "slot": 5}, {"item": "oak_log", "count": 70}]  # fmt: skip
    world = voxel.make(task_of(inventory=inventory), **SMALL)
    reset, seen = jax.jit(lambda key: world.reset(key).inventory), set()
    for seed in range(30):
        held = reset(jax.random.key(seed))
        named = {
            i: (items.NAMES[int(n)], int(c)) for i, (n, c) in enumerate(zip(held.item, held.count, strict=True)) if c
        }
        assert named[0] == ("iron_axe", 1)
        assert sum(count for name, count in named.values() if name == "oak_log") == 70
        (slot,) = [i for i, (name, _) in named.items() if name == "dirt"]
        assert slot not in (0, 5)
        assert 1 <= named[slot][1] <= 3
        assert named.get(5, ("sand", 0))[0] in ("sand", "gravel", "oak_log")
        seen.add((slot, named.get(5)))
    assert len(seen) > 10


def test_an_episodes_info_tells_what_each_term_has_paid():
    world = voxel.make(task_of(reward=[
        {"name": "some", "event": "custom", "objects": ["jump"], "reward": 0.5},
        {"name": "few", "event": "custom", "objects": ["jump"], "reward": -2.0, "max_times": 1},
    ]), frame_skip=1, **SMALL)  # fmt: skip
    state, step, total = world.reset(jax.random.key(0)), jax.jit(world.step), 0.0
    for _ in range(40):
        state, timestep = step(state, choose(world, "forward and jump"))
        total += float(timestep.reward)
    told = as_dict(jax.device_get(timestep.info))
    assert told["custom"]["jump"] >= 2
    assert told["reward/some"] == 0.5 * told["custom"]["jump"]
    assert told["reward/few"] == -2.0
    assert total == pytest.approx(told["reward/some"] + told["reward/few"])
