"""Task files: what they say is checked before anything starts."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from minestudio_jax.envs import voxel
from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.envs.tasks import (
    FastReset,
    MobGroup,
    Place,
    Stack,
    task_to_dict,
    with_common_actions,
)
from minestudio_jax.envs.voxel import rewards
from minestudio_jax.envs.voxel import statistics as stats
from minestudio_jax.envs.voxel.statistics import counted, nothing_yet
from minestudio_jax.envs.voxel.world import playable_tasks
from minestudio_jax.utils.task_files import FOLDER, load_task, task_names

VALID = {
    "name": "t",
    "text": "Do it.",
    "reward": [{"name": "log", "event": "mine_block", "objects": ["oak_log", "dirt"], "reward": 2.0, "max_times": 3}],
}
TERM = VALID["reward"][0]
# What the embedded world says that it lacks for them.
FOR_MINECRAFT = {
    "build_gate": "no structure of 'nether_portal'",
    "obtain_diamond": "no pickup of 'birch_log'; did you mean 'oak_log'?",
    "shoot_sheep": "item='bow' is not one of",
}


def written(tmp_path, values):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_the_shipped_tasks_are_the_promised_ones_and_all_make_a_world():
    assert {"chop_tree", "collect_dirt", "mine_cobblestone", "mine_iron", "hunt_cow", "combat_zombie", "build_pillar",
            "navigate"} <= set(playable_tasks())  # fmt: skip
    assert set(task_names()) == {*playable_tasks(), *FOR_MINECRAFT}
    for name in playable_tasks():
        task = load_task(name)
        assert task.name == name
        assert task.success is not None
        for preset in ("toy", "vanilla"):
            world = voxel.make(name, preset=preset)
            assert jax.eval_shape(world.reset, jax.random.key(0)).paid.shape == (len(task.reward),)


@pytest.mark.parametrize(("name", "lacks"), FOR_MINECRAFT.items())
def test_a_task_that_the_embedded_world_cannot_play_is_refused_with_what_is_missing(name, lacks):
    with pytest.raises(ValueError, match=lacks.replace("?", r"\?")) as error:
        voxel.make(name)
    assert "the task is for Minecraft only" in str(error.value)


@pytest.mark.parametrize("name", sorted(set(task_names()) - {"navigate"}))
def test_every_shipped_task_is_one_for_minecraft(name):
    assert callbacks_for(load_task(name))


def test_a_task_that_only_the_embedded_world_can_judge_is_refused_for_minecraft():
    with pytest.raises(ValueError, match=r"'reach_goal'.*for the embedded world only|'approach_one_block'.*only"):
        callbacks_for(load_task("navigate"))


def test_a_biome_that_minecraft_does_not_have_is_refused_for_it():
    task = dataclasses.replace(load_task("mine_iron"), biome="mountain")
    with pytest.raises(ValueError, match=r"task mine_iron: biome='mountain'.*did you mean 'mountains'"):
        callbacks_for(task)


@pytest.mark.parametrize(
    ("biome", "says"),
    [
        ("plain", "biome='plain'.*no such biome to begin in; did you mean 'plains'"),
        ("icy", "biome='icy' is a group of biomes: name some of them, snowy_tundra, snowy_mountains"),
    ],
)
def test_a_biome_that_a_fast_reset_cannot_find_is_refused(biome, says):
    task = dataclasses.replace(load_task("hunt_cow"), fast_reset=FastReset(("forest", biome)))
    with pytest.raises(ValueError, match=f"task hunt_cow: fast_reset: {says}"):
        callbacks_for(task)


def test_a_task_of_ones_own_is_a_file(tmp_path):
    world = voxel.make(written(tmp_path, {**VALID, "inventory": {"dirt": 3}}))
    assert world.task.reward[0].objects == ("oak_log", "dirt")
    assert int(jax.jit(world.reset)(jax.random.key(0)).inventory.count[0]) == 3


EVERYTHING = {
    **VALID,
    "reward": [
        {**TERM, "per": "count"},
        {"name": "gate", "event": "structure", "objects": ["nether_portal"], "reward": 1},
    ],
    "time_limit": 600,
    "success": {"event": "kill_entity", "objects": ["minecraft:cow"], "count": 2, "ends": True},
    "biome": "minecraft:plains",
    "time": "noon",
    "weather": "rain",
    "spawn": [{"position": [1, 70.5, -3], "seed": 4}, {"seed": 5}],
    "inventory": [
        {"item": "obsidian", "count": 64, "slot": "offhand"},
        {"item": ["dirt", "minecraft:sand"], "count": [0, 3], "slot": "random"},
        {"item": "bow", "slot": 0},
        {"item": "arrow", "count": 128},
    ],
    "mobs": [{"name": "sheep", "number": 50, "range": 15}],
    "commands": ["/give @p minecraft:stick 1", "summon minecraft:boat"],
    "mask": ["hotbar", "attack", "camera"],
    "actions": "building",
    "world": {"hills": 0},
}


def test_everything_that_can_be_said_is_understood():
    task = task_from_dict(EVERYTHING, "here")
    assert task.reward[0].per == "count"
    assert task.success.objects == ("cow",)
    assert (task.biome, task.time, task.weather) == ("plains", 6000, "rain")
    assert task.spawn == (Place((1.0, 70.5, -3.0), 4), Place(None, 5))
    assert task.inventory == (
        Stack(("obsidian",), (64, 64), "offhand"),
        Stack(("dirt", "sand"), (0, 3), "random"),
        Stack(("bow",), (1, 1), "0"),
        Stack(("arrow",), (128, 128), "next"),
    )
    assert task.mobs == (MobGroup("sheep", 50, 15),)
    assert task.commands == ("/give @p minecraft:stick 1", "/summon minecraft:boat")
    assert task.mask == ("attack", *(f"hotbar.{i}" for i in range(1, 10)), "camera")
    kept = task_from_dict({**VALID, "fast_reset": {"biomes": ["plains"]}, "mobs": {"cow": 2}}, "here")
    assert kept.fast_reset == FastReset(("plains",), 1000)
    assert kept.mobs == (MobGroup("cow", 2, 10),)


@pytest.mark.parametrize("task", [*task_names(), "everything"])
def test_a_task_reaches_another_process_as_json(task):
    task = task_from_dict(EVERYTHING, "here") if task == "everything" else load_task(task)
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task))), "there") == task


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": []}, "reward must be a list of at least one term"),
        ({"rewards": []}, "there is no key 'rewards'; did you mean 'reward'"),
        ({"text": None, "name": None, "reward": [{"event": "mine_block"}]}, "reward 0: name is missing"),
        ({"text": 3}, "text=3 must be a text"),
        ({"reward": [{**TERM, "event": "mine_blok"}]}, "event='mine_blok' is not one of.*did you mean 'mine_block'"),
        ({"reward": [{**TERM, "objects": "oak_log"}]}, "objects must be a list of names"),
        ({"reward": [{**TERM, "objects": ["oak_logs"]}]}, "did you mean 'oak_log'"),
        ({"reward": [{**TERM, "reward": "much"}]}, "reward='much' is not a number"),
        ({"reward": [{**TERM, "reward": float("nan")}]}, "reward=nan is not a number"),
        ({"reward": [{**TERM, "name": 3}]}, "name=3 must be a text"),
        ({"reward": [{**TERM, "max_times": -1}]}, "max_times=-1 must be a whole number"),
        ({"reward": [{**TERM, "per": "rise"}]}, "per='rise' is not one of step, count"),
        ({"reward": [TERM, TERM]}, "two terms are called 'log'"),
        ({"reward": [{**TERM, "event": "structure"}]}, "objects='oak_log' is not one of nether_portal"),
        ({"reward": [{**TERM, "event": "structure", "objects": ["nether_portal"]}]}, "neither max_times nor per"),
        ({"success": {"event": "pickup"}}, "success: objects is missing"),
        ({"success": {"event": "pickup", "objects": ["dirt"], "count": 0}}, "count=0 must be a whole number"),
        ({"actions": "running"}, "actions='running' is not one of"),
        ({"inventory": 3}, "inventory must be a mapping of items to counts"),
        ({"inventory": {"dort": 1}}, "item='dort' is not one of.*did you mean 'dirt'"),
        ({"inventory": {"dirt": 64 * 37}}, "does not fit into 36 slots"),
        ({"inventory": [{"item": "dirt", "slot": "hand"}]}, "slot='hand' is not one of.*did you mean 'head'|offhand"),
        ({"inventory": [{"item": "dirt", "slot": 1}, {"item": "sand", "slot": 1}]}, "slot 1 is filled twice"),
        ({"inventory": [{"item": "dirt", "slot": 1, "count": 65}]}, "count=65 does not fit into one slot"),
        ({"inventory": [{"item": "iron_axe", "slot": 1, "count": 2}]}, "2 of iron_axe do not fit into one slot: 1 at"),
        ({"inventory": [{"item": "dirt", "count": [3, 1]}]}, "count=1 must be a whole number, at least 3"),
        ({"inventory": [{"item": "dirt", "slot": "offhand"}]}, "no slot 'offhand', only 0 to 35; else the task is for"),
        ({"mobs": {"cows": 1}}, "did you mean 'cow'"),
        ({"mobs": [{"name": "cow", "number": 1, "range": 2}]}, "range=2 must be a whole number, from 5 to 100"),
        ({"world": {"hils": 1}}, "did you mean 'hills'"),
        ({"time_limit": 0}, "time_limit=0 must be a number of ticks"),
        ({"time_limit": "long"}, "time_limit='long' must be"),
        ({"biome": "plain"}, "did you mean 'plains'"),
        ({"time": "noonish"}, "time='noonish' is not one of.*did you mean 'noon'"),
        ({"time": 24000}, "time=24000 must be a whole number, from 0 to 23999"),
        ({"weather": "rainy"}, "weather='rainy' is not one of.*did you mean 'rain'"),
        ({"weather": "rain"}, "weather='rain': it is always clear here; else the task is for Minecraft only"),
        ({"spawn": {"position": [1, 2]}}, "position=.*must be three numbers"),
        ({"spawn": {}}, "neither position nor seed"),
        ({"spawn": {"position": [200, 8, 3]}}, "outside of this world, which reaches from"),
        ({"spawn": {"seed": 3}, "fast_reset": {}}, "remove one of them"),
        ({"fast_reset": {"biome": ["plains"]}}, "fast_reset: there is no key 'biome'; did you mean 'biomes'"),
        ({"commands": "/kill"}, "commands must be a list of commands"),
        ({"commands": ["/gave @p dirt"]}, "commands: '/gave @p dirt': there is no such command.*else the task is for Minecraft only"),
        ({"commands": ["/give @p minecraft:bow 1"]}, "commands: .*bow.*else the task is for Minecraft only"),
        ({"mask": ["atack"]}, "key='atack' is not one of.*did you mean 'attack'"),
        ({"mask": ["forward", "attack", "camera"]}, "rules out every choice of actions='gathering'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        voxel.make(written(tmp_path, {**VALID, **change}))


@pytest.mark.parametrize(("text", "says"), [("a: [", "is not YAML"), ("- a", "must hold a mapping")])
def test_what_is_no_task_file_is_said(tmp_path, text, says):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_task(str(tmp_path / "t.yaml"))


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'chop_tree'"):
        load_task("chop_trees")
    assert FOLDER.name == "tasks"


def test_a_file_of_minestudios_benchmark_is_a_task_that_pays_nothing(tmp_path):
    benchmark = {
        "custom_init_commands": ["/give @s minecraft:iron_axe 1", "time set night"],
        "defaults": ["base", "_self_"],
        "text": "Chop trees at night.",
        "reference_video": "chop",
    }
    task = load_task(written(tmp_path, benchmark))
    assert (task.name, task.text, task.reward, task.time_limit) == ("t", "Chop trees at night.", (), 600)
    assert task.commands == ("/give @s minecraft:iron_axe 1", "/time set night")
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task))), "there") == task
    assert callbacks_for(task)
    world = voxel.make(task, size=24)
    state = jax.jit(world.reset)(jax.random.key(0))
    assert (int(state.inventory.count[0]), int(state.time)) == (1, 13000)
    _, timestep = jax.eval_shape(world.step, state, {"choice": jnp.array([0])})
    assert timestep.reward.shape == ()
    # With a reward of one's own it is a task like any other.
    rewarded = load_task(
        written(tmp_path, {**benchmark, "reward": VALID["reward"], "time_limit": 50, "biome": "forest"})
    )
    assert (rewarded.reward[0].name, rewarded.time_limit, rewarded.biome) == ("log", 50, "forest")
    with pytest.raises(ValueError, match="there is no key 'rewarded'"):
        load_task(written(tmp_path, {**benchmark, "rewarded": []}))


def test_where_one_task_of_a_run_has_a_mask_all_have():
    plain, masked = load_task("chop_tree"), dataclasses.replace(load_task("chop_tree"), mask=("attack",))
    assert with_common_actions({"a": plain, "b": plain}) == {"a": plain, "b": plain}
    both = with_common_actions({"a": plain, "b": masked})
    assert (both["a"].mask, both["b"].mask) == ((), ("attack",))
    assert voxel.make(both["a"], action_set="vpt").action_masks["buttons"].all()
    assert not voxel.make(both["b"], action_set="vpt").action_masks["buttons"].all()
    assert set(both["b"].mask) <= set(BUTTONS)


def test_where_one_can_craft_in_one_task_of_a_run_one_can_in_all():
    plain, crafts = load_task("chop_tree"), load_task("mine_iron")
    both = with_common_actions({"a": plain, "b": crafts})
    assert (both["a"].crafting, both["b"].crafting) == (True, True)
    assert both["a"] == dataclasses.replace(plain, crafting=True)


def test_obtaining_diamonds_pays_what_vpt_was_paid():
    """Table 7 of Baker et al. 2022, appendix G.1: for each of so many; 0 is without limit."""
    table = {
        "log": (8, 1 / 8), "planks": (20, 1 / 20), "stick": (16, 1 / 16), "crafting_table": (1, 1),
        "wooden_pickaxe": (1, 1), "cobblestone": (11, 1 / 11), "stone_pickaxe": (1, 1), "furnace": (1, 1),
        "coal": (5, 2 / 5), "torch": (16, 1 / 8), "iron_ore": (3, 4 / 3), "iron_ingot": (3, 4 / 3),
        "iron_pickaxe": (1, 4), "diamond": (0, 8 / 3), "diamond_pickaxe": (0, 8),
    }  # fmt: skip
    terms = {term.name: term for term in load_task("obtain_diamond").reward}
    assert {name: (term.max_times, pytest.approx(term.reward, abs=1e-4)) for name, term in terms.items()} == table
    assert {name for name, term in terms.items() if term.per == "step"} <= {
        name for name, (most, _) in table.items() if most == 1
    }


def pay(task, *counts):
    """What each of consecutive ticks pays, with counts of (event, name, amount)."""
    before, times, paid = nothing_yet(), jnp.zeros(len(task.reward), jnp.int32), []
    for tick in counts:
        after = before
        for event, name, amount in tick:
            after = counted(after, event, stats.NAMES[event].index(name), amount)
        terms, times = rewards.paid(task, before, after, times)
        paid.append(np.asarray(terms).tolist())
        before = after
    return paid


def test_a_term_pays_once_a_tick_for_any_of_its_objects_and_max_times_in_all():
    task = task_from_dict(VALID, "here")
    log, dirt, stone = ("mine_block", "oak_log", 1), ("mine_block", "dirt", 5), ("mine_block", "stone", 1)
    assert pay(task, [log], [], [stone], [dirt], [log, dirt], [log]) == [[2], [0], [0], [2], [2], [0]]


def test_a_term_by_count_pays_as_often_as_the_count_rises_and_max_times_in_all():
    task = task_from_dict({**VALID, "reward": [{**TERM, "per": "count", "max_times": 7}]}, "here")
    log, dirt = ("mine_block", "oak_log", 1), ("mine_block", "dirt", 4)
    assert pay(task, [log], [], [log, dirt], [dirt], [log]) == [[2], [0], [10], [2], [0]]


def test_terms_add_up_and_know_their_own_events():
    more = {"name": "cow", "event": "kill_entity", "objects": ["cow"], "reward": -1.5}
    task = task_from_dict({**VALID, "reward": [*VALID["reward"], more]}, "here")
    paid = pay(
        task,
        [("mine_block", "dirt", 1), ("kill_entity", "cow", 1)],
        [("kill_entity", "pig", 1)],
        [("pickup", "dirt", 1)],
    )
    assert paid == [[2, -1.5], [0, 0], [0, 0]]


def test_success_counts_over_all_objects():
    task = task_from_dict({**VALID, "success": {"event": "pickup", "objects": ["dirt", "sand"], "count": 3}}, "here")
    counts = nothing_yet()
    for name, done in (("dirt", False), ("sand", False), ("stone", False), ("dirt", True)):
        counts = counted(counts, "pickup", stats.NAMES["pickup"].index(name), 1)
        assert bool(rewards.succeeded(task, counts)) == done
    assert not rewards.succeeded(task_from_dict(VALID, "here"), counts)
