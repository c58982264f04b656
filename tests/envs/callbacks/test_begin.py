"""How episodes begin: worlds, places, inventory, mobs, commands."""

from __future__ import annotations

import collections
from random import Random

import numpy as np
import pytest

from minestudio_jax.envs import actions
from minestudio_jax.envs.callbacks import fast_reset
from minestudio_jax.envs.callbacks.commands import Commands
from minestudio_jax.envs.callbacks.fast_reset import FastReset
from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.callbacks.hard_reset import HardReset
from minestudio_jax.envs.callbacks.inventory import StartInventory, slot_name
from minestudio_jax.envs.callbacks.summon_mobs import SummonMobs
from minestudio_jax.envs.callbacks.time_and_weather import TimeAndWeather
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.envs.tasks import FastReset as FastResetRule
from minestudio_jax.envs.tasks import MobGroup, Place, Stack
from tests.envs.scripted_simulator import NOTHING, ScriptedSimulator


def begin(*callbacks, react=None):
    simulator = ScriptedSimulator(react) if react else ScriptedSimulator()
    return simulator, MinecraftEnvironment(simulator, callbacks)


def test_every_episode_has_a_new_world_unless_a_callback_keeps_it():
    simulator, env = begin()
    for seed in (5, None, None):
        env.reset(seed)
    assert simulator.asked == [("reset", 5), ("reset", None), ("reset", None)]


def test_commands_are_carried_out_one_a_tick_and_the_frame_after_them_is_the_first():
    """D-60: what they change is what the first observation shows."""
    simulator, env = begin(
        TimeAndWeather(6000, "clear"), Commands(["/give @p minecraft:bow 1"], 2), TimeAndWeather(None, "")
    )
    obs, _ = env.reset()
    assert [keys.get("chat") for _, keys in simulator.asked[1:]] == [
        "/time set 6000", "/weather clear", "/give @p minecraft:bow 1", None, None,
    ]  # fmt: skip
    assert (obs["image"] == len(simulator.asked)).all()
    for _, keys in simulator.asked[1:]:
        assert set(actions.BUTTONS) < set(keys)
        assert not any(keys[name] for name in actions.BUTTONS)


def test_slots_have_minecrafts_names():
    names = {"0": "hotbar.0", "8": "hotbar.8", "9": "inventory.0", "35": "inventory.26", "offhand": "weapon.offhand",
             "head": "armor.head", "chest": "armor.chest", "legs": "armor.legs", "feet": "armor.feet"}  # fmt: skip
    assert {slot: slot_name(slot) for slot in names} == names


def test_the_inventory_is_filled_slot_by_slot_and_then_where_there_is_room():
    stacks = [
        Stack(("oak_planks",), (80, 80)),
        Stack(("obsidian",), (64, 64), "offhand"),
        Stack(("diamond_pickaxe",), (1, 1), "0"),
        Stack(("iron_helmet",), (1, 1), "head"),
    ]
    assert StartInventory(stacks, Random(0)).commands() == [
        "/replaceitem entity @p weapon.offhand minecraft:obsidian 64",
        "/replaceitem entity @p hotbar.0 minecraft:diamond_pickaxe 1",
        "/replaceitem entity @p armor.head minecraft:iron_helmet 1",
        "/give @p minecraft:oak_planks 80",
    ]


def test_what_is_drawn_keeps_to_its_bounds_and_comes_out_otherwise_each_time():
    stacks = [Stack(("bow",), (1, 1), "3"), *[Stack(("dirt", "sand"), (0, 2), "random")] * 4]
    start, seen = StartInventory(stacks, Random(1)), collections.Counter()
    for _ in range(200):
        placed = [command.split() for command in start.commands()]
        slots = [words[3] for words in placed]
        assert len(set(slots)) == len(slots)
        assert slots[0] == "hotbar.3"
        assert all(1 <= int(words[5]) <= 2 for words in placed)
        seen.update((words[4], int(words[5])) for words in placed[1:])
        seen["slots"] |= len(placed)
    assert set(seen) == {(f"minecraft:{item}", count) for item in ("dirt", "sand") for count in (1, 2)} | {"slots"}


def test_mobs_stand_around_the_player():
    commands = SummonMobs([MobGroup("sheep", 200, 15), MobGroup("cow", 1)], Random(0)).commands()
    assert len(commands) == 201
    assert "summon minecraft:cow" in commands[-1]
    words = [
        command.replace("/execute as @p at @p run summon minecraft:sheep ", "").split() for command in commands[:200]
    ]
    assert all(y == "~3" and tag == "{Age:0}" for _, y, _, tag in words)
    distance = np.hypot(*np.array([[float(x[1:]), float(z[1:])] for x, _, z, _ in words]).T)
    assert 3.9 < distance.min() < 5
    assert 14 < distance.max() < 15.1


def test_a_hard_reset_draws_a_seed_and_a_place():
    places = [Place((1.0, 70.0, -3.5), 4), Place(None, 5), Place((0.0, 64.0, 0.0), None)]
    simulator, env = begin(HardReset(places, Random(0), load_ticks=3))
    begun = set()
    for _ in range(40):
        simulator.asked.clear()
        env.reset()
        (kind, seed), *steps = simulator.asked
        assert kind == "reset"
        chats = [keys["chat"] for _, keys in steps if "chat" in keys]
        assert len(steps) == (4 if chats else 0)
        begun.add((seed, *chats))
    assert begun == {(4, "/tp @p 1 70 -3.5"), (5,), (None, "/tp @p 0 64 0")}


def test_a_seed_that_is_asked_for_seeds_later_worlds_and_a_places_own_does_not():
    simulator, env = begin(HardReset([Place(None, 42)], Random(0)))
    for seed in (5, None, 6):
        env.reset(seed)
    assert simulator.seeded == [5, 6]
    assert simulator.asked == [("reset", 42)] * 3


def kept(biomes=("plains",), react=None, **options):
    rule = FastResetRule(tuple(biomes), 1000)
    return begin(FastReset(rule, Random(0), load_ticks=2, **options), react=react)


def test_a_fast_reset_keeps_the_world_and_sends_the_player_elsewhere_as_new():
    simulator, env = kept()
    env.reset(seed=3)
    assert simulator.asked == [("reset", 3)]
    places = set()
    for _ in range(5):
        simulator.asked.clear()
        env.reset()
        assert all(kind == "step" for kind, _ in simulator.asked)
        assert all("chat" not in keys for _, keys in simulator.asked[-2:])
        *tidied, sent = simulator.chats()
        assert {"/clear @p", "/kill @e[type=!player]", "/kill @e[type=item]"} <= set(tidied)
        assert "/kill" not in tidied  # the player's death might end the mission, and would be counted
        *_, biome, x, y, z = sent.split()
        assert (sent.split()[0], biome, y) == ("/teleportbiome", "plains", "~0")
        assert max(abs(int(x)), abs(int(z))) <= 500
        places.add((x, z))
    assert len(places) == 5


@pytest.mark.parametrize("is_open", [False, True])
def test_a_kept_player_has_no_screen_open_the_first_slot_in_the_hand_and_looks_ahead(is_open):
    """The screen is closed first: in it the hotbar's keys would move items."""
    player = {"is_gui_open": is_open, "slot": 5, "pitch": 35.0}

    def react(simulator, keys):
        if keys and keys["inventory"]:
            player["is_gui_open"] = not player["is_gui_open"]
        elif keys and keys["hotbar.1"] and not player["is_gui_open"]:
            player.update(slot=1, pitch=player["pitch"] + keys["camera"][0])
        if keys and "chat" in keys:
            assert player == {"is_gui_open": False, "slot": 1, "pitch": 0.0}
        simulator.state = {name: player[name] for name in ("is_gui_open", "pitch")}

    simulator, env = kept(react=react)
    env.reset()
    simulator.asked.clear()
    env.reset()
    pressed = [[name for name in actions.BUTTONS if keys[name]] for _, keys in simulator.asked if "chat" not in keys]
    assert [names for names in pressed if names] == [["inventory"]] * is_open + [["hotbar.1"]]
    assert player == {"is_gui_open": False, "slot": 1, "pitch": 0.0}


def test_a_mission_that_has_ended_is_begun_anew_in_a_new_world():
    """D-49: a finished one is not stepped."""
    ends = [True]

    def react(simulator, keys):
        simulator.done = keys is not None and ends.pop()

    simulator, env = kept(react=react)
    env.reset(seed=3)
    assert env.step(NOTHING)[2]
    simulator._react = lambda simulator, keys: None
    simulator.asked.clear()
    env.reset()
    assert simulator.asked == [("reset", None)]
    simulator.asked.clear()
    env.reset()
    assert ("reset", None) not in simulator.asked


def test_a_seed_that_is_asked_for_is_a_new_world():
    simulator, env = kept()
    env.reset(seed=3)
    simulator.asked.clear()
    env.reset(seed=4)
    assert simulator.asked == [("reset", 4)]


def test_without_a_command_for_biomes_places_are_tried_until_one_is_right():
    found = iter(["ocean", "forest", "minecraft:plains"])

    def react(simulator, keys):
        if keys and keys.get("chat", "").startswith("/spreadplayers"):
            simulator.state = {"biome": next(found)}

    simulator, env = kept(finds_biomes=False, react=react)
    env.reset()
    env.reset()
    assert sum(chat.startswith("/spreadplayers") for chat in simulator.chats()) == 3


@pytest.mark.parametrize("biomes", [(), ("plains",)])
def test_the_last_place_is_taken_as_it_is_and_any_is_right_if_none_is_wanted(biomes):
    simulator, env = kept(biomes=biomes, finds_biomes=False)
    simulator.state = {"biome": "ocean"}
    env.reset()
    env.reset()
    tried = sum(chat.startswith("/spreadplayers") for chat in simulator.chats())
    assert tried == (fast_reset.TRIES if biomes else 1)


def test_a_dead_player_is_waited_for():
    simulator, env = kept()
    env.reset()
    simulator.state = {"is_alive": False}

    def revive(simulator, keys):
        simulator.state = {"is_alive": len(simulator.asked) > 5}

    simulator._react = revive
    simulator.asked.clear()
    env.reset()
    chats = [keys.get("chat") for _, keys in simulator.asked]
    assert chats[:7] == [None] * 7
    assert chats[7] == "/clear @p"
    simulator._react = lambda simulator, keys: None
    simulator.state = {"is_alive": False}
    with pytest.raises(EnvironmentFailure, match="the game does not revive him"):
        env.reset()


def test_an_episode_that_ends_before_it_begins_is_begun_again_but_not_for_ever():
    ends = [True, True, False]

    def react(simulator, keys):
        if keys and "chat" in keys:
            simulator.done = ends.pop(0) if ends else True

    simulator, env = begin(Commands(["/tp @p 0 0 0", "/give @p minecraft:dirt 1"], 3), react=react)
    ends[:] = [True, True, False, False]
    env.reset()
    assert [kind for kind, _ in simulator.asked].count("reset") == 3
    with pytest.raises(EnvironmentFailure, match="ended 3 episodes before their first step"):
        env.reset()


def test_a_tasks_callbacks_prepare_in_order():
    task = task_from_dict(
        {
            "name": "t", "text": "t", "time": "night", "weather": "thunder", "mobs": {"cow": 1},
            "inventory": [{"item": "bow", "slot": 0}], "commands": ["/kill @e[type=cow]"], "fast_reset": {},
            "reward": [{"name": "frame", "event": "structure", "objects": ["nether_portal"], "reward": 1}],
        },
        "here",
    )  # fmt: skip
    simulator = ScriptedSimulator()
    simulator.state = {"voxels": []}
    env = MinecraftEnvironment(simulator, callbacks_for(task))
    for new in (True, False):
        env.reset()
        said = simulator.chats()
        assert said[0] == ("/time set 13000" if new else "/clear @p")
        verbs = [
            chat.split()[0]
            for chat in said
            if chat.startswith(("/spread", "/time", "/weather", "/replace", "/execute"))
        ]
        expected = ["/time", "/weather", "/replaceitem", "/execute"]
        assert verbs == (expected if new else ["/spreadplayers", *expected])
        assert said[-1] == "/kill @e[type=cow]"
    env.close()
    assert simulator.closed
