"""What a player begins with where there are no commands."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.envs.env import MisconfiguredEnvironment
from minestudio_jax.envs.start_inventory import drawn_inventory, without_commands
from minestudio_jax.envs.tasks import FastReset, MobGroup, Place, RewardTerm, Stack, Task

TERM = RewardTerm("log", "mine_block", ("oak_log",), 1.0)


def test_stacks_lie_where_they_are_wanted():
    stacks = [
        Stack(("dirt",), (3, 3)),
        Stack(("iron_axe",), slot="0"),
        Stack(("shield",), slot="offhand"),
        Stack(("diamond_helmet",), slot="head"),
        Stack(("stick",), (0, 0)),
    ]
    assert drawn_inventory(stacks, np.random.default_rng(0)) == {
        0: {"type": "iron_axe", "quantity": 1},
        1: {"type": "dirt", "quantity": 3},
        39: {"type": "diamond_helmet", "quantity": 1},
        40: {"type": "shield", "quantity": 1},
    }


def test_a_slot_holds_a_stack_at_most():
    stacks = [Stack(("arrow",), (130, 130)), Stack(("bow",), slot="1")]
    assert drawn_inventory(stacks, np.random.default_rng(0)) == {
        0: {"type": "arrow", "quantity": 64},
        1: {"type": "bow", "quantity": 1},
        2: {"type": "arrow", "quantity": 64},
        3: {"type": "arrow", "quantity": 2},
    }


def test_random_slots_are_drawn_before_the_next_ones_are_filled_and_never_those_that_are_named():
    stacks = [Stack(("dirt",)), Stack(("sand",), slot="random"), Stack(("bow",), (0, 1), slot="0")]
    rng, firsts = np.random.default_rng(0), set()
    for _ in range(300):
        drawn = drawn_inventory(stacks, rng)
        sand = next(slot for slot, stack in drawn.items() if stack["type"] == "sand")
        firsts.add(sand)
        free = [slot for slot in range(36) if drawn.get(slot, {}).get("type", "dirt") == "dirt"]
        assert drawn[free[0]]["type"] == "dirt"
    assert firsts == set(range(1, 36))


def test_every_episode_draws_anew():
    rng, stack = np.random.default_rng(0), Stack(("dirt", "sand"), (1, 64), "random")
    drawn = [drawn_inventory([stack], rng) for _ in range(200)]
    assert {len(found) for found in drawn} == {1}
    assert len({slot for found in drawn for slot in found}) == 36
    assert {stack["type"] for found in drawn for stack in found.values()} == {"dirt", "sand"}
    counts = {stack["quantity"] for found in drawn for stack in found.values()}
    assert min(counts) < 5
    assert max(counts) > 60


def test_the_mission_can_say_inventory_and_biome_and_nothing_else():
    stacks = (Stack(("dirt",)),)
    task, left = without_commands(
        Task("dig", "Dig.", (TERM,), biome="plains", inventory=stacks, spawn=(Place(seed=3),))
    )
    assert (task.inventory, left, task.biome) == ((), stacks, "plains")
    fast = Task("dig", "Dig.", (TERM,), fast_reset=FastReset())
    assert without_commands(fast)[0].fast_reset is None
    needy = Task("shoot", "Shoot.", (TERM,), mobs=(MobGroup("sheep", 3),), weather="rain")
    with pytest.raises(MisconfiguredEnvironment, match=r"'shoot' needs .* for its mobs, weather, .*minestudio"):
        without_commands(needy)
