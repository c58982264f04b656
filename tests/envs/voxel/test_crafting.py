from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import crafting, items
from minestudio_jax.envs.voxel import inventory as inv
from tests.envs.voxel.worlds import FLOOR, flat

POSITION = jnp.array([12.5, FLOOR, 12.5])

craft = jax.jit(crafting.craft)


def crafted(contents, name, near=None, distance=2):
    blocks = flat()
    if near:
        blocks[12 + distance, FLOOR, 12] = b.ID[near]
    inventory = inv.start_inventory(contents)
    after, item, made = craft(jnp.asarray(blocks), POSITION, inventory, jnp.int32(crafting.NAMES.index(name)))
    assert int(item) == items.ID.get(name, 0)
    return {
        items.NAMES[i]: int(inv.count_of(after, i)) for i in range(1, items.NUM_ITEMS) if inv.count_of(after, i)
    }, int(made)


def test_a_log_is_four_planks_and_two_planks_are_four_sticks():
    assert crafted({"oak_log": 2}, "oak_planks") == ({"oak_log": 1, "oak_planks": 4}, 4)
    assert crafted({"oak_planks": 2}, "stick") == ({"stick": 4}, 4)


def test_without_the_ingredients_nothing_happens():
    assert crafted({"oak_planks": 2, "stick": 2}, "wooden_pickaxe", "crafting_table") == (
        {"oak_planks": 2, "stick": 2},
        0,
    )
    assert crafted({"dirt": 1}, "oak_planks") == ({"dirt": 1}, 0)
    assert crafted({"dirt": 1}, "nothing") == ({"dirt": 1}, 0)


def test_tools_need_a_table_within_reach():
    contents = {"oak_planks": 3, "stick": 2}
    assert crafted(contents, "wooden_pickaxe", "crafting_table") == ({"wooden_pickaxe": 1}, 1)
    assert crafted(contents, "wooden_pickaxe")[1] == 0
    assert crafted(contents, "wooden_pickaxe", "furnace")[1] == 0
    assert crafted(contents, "wooden_pickaxe", "crafting_table", distance=4)[1] == 0


def test_smelting_needs_a_furnace_and_coal():
    assert crafted({"iron_ore": 2, "coal": 1}, "iron_ingot", "furnace") == ({"iron_ore": 1, "iron_ingot": 1}, 1)
    assert crafted({"iron_ore": 2}, "iron_ingot", "furnace")[1] == 0


@pytest.mark.parametrize("recipe", crafting.RECIPES, ids=lambda r: r.makes)
def test_every_recipe_makes_what_it_says_of_exactly_what_it_needs(recipe):
    assert crafted(recipe.needs, recipe.makes, recipe.near) == ({recipe.makes: recipe.count}, recipe.count)
