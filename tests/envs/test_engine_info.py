"""What Minecraft's engines tell, as MineRL's and MineStudio's tell it."""

from __future__ import annotations

import numpy as np

from minestudio_jax.envs import engine_info


def test_statistics_have_plain_names_and_no_zeros():
    told = {
        "mine_block": {"minecraft:oak_log": 3, "dirt": 0},
        "custom": {"jump": np.array(2.0)},
        "drop": {"dirt": 0},
        "life_stats": {"life": 20},
    }
    assert engine_info.statistics(told) == {"mine_block": {"oak_log": 3}, "custom": {"jump": 2}}


def test_state_as_minerl_tells_it():
    told = {
        "life_stats": {"life": 7.5, "food": 3, "is_alive": True}, "xpos": 1, "ypos": 64.5, "zpos": -3, "yaw": 10,
        "pitch": 5, "biome_name": "minecraft:dark_forest", "isGuiOpen": True,
        "inventory": [{"type": "dirt", "quantity": 2}, {"type": "air", "quantity": 0}],
        "equipped_items": {"mainhand": '{"type": "minecraft:bow", "maxDamage": 384, "damage": 1}'},
    }  # fmt: skip
    assert engine_info.state(told) == {
        "is_alive": True, "health": 7.5, "food": 3, "position": (1.0, 64.5, -3.0), "yaw": 10.0, "pitch": 5.0,
        "biome": "dark_forest", "is_gui_open": True, "inventory": [{"type": "dirt", "quantity": 2}],
        "equipped_items": {"mainhand": {"type": "bow", "maxDamage": 384, "damage": 1}},
    }  # fmt: skip


def test_state_as_minestudio_tells_it():
    told = {
        "health": 0.0, "food_level": 20,
        "inventory": [{"slot_id": 4, "type": "minecraft:bow", "quantity": 1}, {"slot_id": 5, "type": "none", "quantity": 0}],
        "equipped_items": {"head": {"type": np.str_("air"), "maxDamage": np.array(0), "damage": np.array(0)}},
        "voxels": [{"x": 0, "y": -1, "z": 0, "type": "minecraft:obsidian"}],
    }  # fmt: skip
    assert engine_info.state(told) == {
        "is_alive": False, "health": 0.0, "food": 20, "inventory": [{"slot": 4, "type": "bow", "quantity": 1}],
        "equipped_items": {"head": {"type": "air", "maxDamage": 0, "damage": 0}},
        "voxels": [{"x": 0, "y": -1, "z": 0, "type": "obsidian"}],
    }  # fmt: skip


def test_what_is_not_told_is_missing():
    assert engine_info.state({}) == {}
    assert engine_info.statistics({}) == {}
