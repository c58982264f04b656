from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items
from minestudio_jax.envs.voxel.tick import loot

# block -> what it drops when harvested, and the least and greatest number; vanilla 1.16 without enchantments.
DROPS = {
    "grass_block": ("dirt", 1, 1),
    "dirt": ("dirt", 1, 1),
    "stone": ("cobblestone", 1, 1),
    "cobblestone": ("cobblestone", 1, 1),
    "oak_log": ("oak_log", 1, 1),
    "oak_planks": ("oak_planks", 1, 1),
    "sand": ("sand", 1, 1),
    "sandstone": ("sandstone", 1, 1),
    "iron_ore": ("iron_ore", 1, 1),
    "gold_ore": ("gold_ore", 1, 1),
    "coal_ore": ("coal", 1, 1),
    "diamond_ore": ("diamond", 1, 1),
    "redstone_ore": ("redstone", 4, 5),
    "lapis_ore": ("lapis_lazuli", 4, 9),
    "obsidian": ("obsidian", 1, 1),
}


def draws(block: int, number: int) -> list[tuple[str, int]]:
    keys = jax.random.split(jax.random.key(1), number)
    item, count = jax.jit(jax.vmap(lambda key: loot(key, jnp.int32(block))))(keys)
    return [(items.NAMES[i], int(c)) for i, c in zip(np.asarray(item), np.asarray(count), strict=True)]


@pytest.mark.parametrize("block", DROPS)
def test_blocks_drop_what_vanillas_do(block):
    item, least, most = DROPS[block]
    found = draws(b.ID[block], 200)
    assert {name for name, _ in found} == {item}
    assert {count for _, count in found} == set(range(least, most + 1))


@pytest.mark.parametrize(
    ("block", "chances"),
    [
        (b.GRAVEL, {("gravel", 1): 0.9, ("flint", 1): 0.1}),
        (b.LEAVES, {("oak_sapling", 1): 0.05, ("stick", 1): 0.01, ("stick", 2): 0.01, ("apple", 1): 0.005}),
    ],
)
def test_rare_drops_come_as_often_as_vanillas(block, chances):
    number = 20_000
    found = draws(block, number)
    for what, chance in chances.items():
        deviation = np.sqrt(chance * (1 - chance) / number)
        assert abs(found.count(what) / number - chance) < 4 * deviation, what
    nothing = 1 - sum(chances.values())
    assert found.count((items.NAMES[items.NONE], 0)) / number == pytest.approx(nothing, abs=0.01)
