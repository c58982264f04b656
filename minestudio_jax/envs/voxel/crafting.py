"""Crafting and smelting by an action of their own, instead of Minecraft's screens.

One action makes one batch at once, if the ingredients are there and, where the recipe needs it, a crafting table or a
furnace stands within reach. Smelting takes coal along with the rest: one for each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items
from minestudio_jax.envs.voxel.inventory import Inventory

REACH = 3  # blocks to every side in which a table or a furnace counts


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
      makes: name of the item.
      count: how many at once.
      needs: item name -> how many.
      near: block that must stand near; "" is none.
    """

    makes: str
    count: int
    needs: Mapping[str, int] = field(default_factory=dict)
    near: str = ""


_MATERIAL = {"wooden": "oak_planks", "stone": "cobblestone", "iron": "iron_ingot", "golden": "gold_ingot",
             "diamond": "diamond"}  # fmt: skip
_TOOL = {"pickaxe": (3, 2), "axe": (3, 2), "shovel": (1, 2), "sword": (2, 1)}  # material, sticks

RECIPES = (
    Recipe("oak_planks", 4, {"oak_log": 1}),
    Recipe("stick", 4, {"oak_planks": 2}),
    Recipe("crafting_table", 1, {"oak_planks": 4}),
    *(
        Recipe(f"{tier}_{tool}", 1, {material: number, "stick": sticks}, "crafting_table")
        for tier, material in _MATERIAL.items()
        for tool, (number, sticks) in _TOOL.items()
    ),
    Recipe("furnace", 1, {"cobblestone": 8}, "crafting_table"),
    Recipe("iron_ingot", 1, {"iron_ore": 1, "coal": 1}, "furnace"),
    Recipe("gold_ingot", 1, {"gold_ore": 1, "coal": 1}, "furnace"),
    Recipe("cooked_beef", 1, {"beef": 1, "coal": 1}, "furnace"),
    Recipe("stone", 1, {"cobblestone": 1, "coal": 1}, "furnace"),
)

# Craft action k + 1 is recipe k; 0 crafts nothing.
NAMES = ("nothing", *(recipe.makes for recipe in RECIPES))
NUM_CRAFT = len(NAMES)


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    needs = np.zeros((NUM_CRAFT, items.NUM_ITEMS), np.int32)
    makes, count, near = (np.zeros(NUM_CRAFT, np.int32) for _ in range(3))
    for number, recipe in enumerate(RECIPES, start=1):
        for name, amount in recipe.needs.items():
            needs[number, items.ID[name]] = amount
        makes[number], count[number] = items.ID[recipe.makes], recipe.count
        near[number] = b.ID[recipe.near] if recipe.near else b.AIR
    return needs, makes, count, near


_NEEDS, _MAKES, _COUNT, _NEAR = _tables()
_AROUND = np.stack(np.meshgrid(*[range(-REACH, REACH + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)


def craft(
    blocks: jax.Array, position: jax.Array, inventory: Inventory, choice: jax.Array
) -> tuple[Inventory, jax.Array, jax.Array]:
    """Does one craft action.

    Args:
      blocks: uint8 [x, y, z].
      position: float32 [3], the player's feet.
      choice: int32 [], 0 is nothing.
    Returns:
      The inventory, the item made and how many, int32 [] each; 0 of them if something was missing.
    """
    needs = jnp.asarray(_NEEDS)[choice]
    held = jnp.zeros(items.NUM_ITEMS, jnp.int32).at[inventory.item].add(inventory.count)
    wanted = jnp.asarray(_NEAR)[choice]
    cells = jnp.clip(jnp.floor(position).astype(jnp.int32) + _AROUND, 0, jnp.array(blocks.shape) - 1)
    around = blocks[cells[:, 0], cells[:, 1], cells[:, 2]]
    possible = (choice > 0) & (held >= needs).all() & ((wanted == b.AIR) | (around == wanted).any())

    item = jnp.asarray(_MAKES)[choice]
    after = inventory
    # No recipe has more than two ingredients.
    amounts, ingredients = jax.lax.top_k(needs, 2)
    for k in range(2):
        after = inv.remove(after, ingredients[k], jnp.where(possible, amounts[k], 0))
    after, made = inv.add(after, item, jnp.where(possible, jnp.asarray(_COUNT)[choice], 0))
    return after, item, made
