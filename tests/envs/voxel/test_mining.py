from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import items, mining, physics
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.raycast import cast, look_direction
from minestudio_jax.envs.voxel.state import Breaking
from tests.envs.voxel.worlds import FLOOR, flat, standing

IDLE = Breaking(jnp.zeros(3, jnp.int32), jnp.float32(0), jnp.int32(0))
AT_EYES = (12, FLOOR + 1, 13)  # the cell before the eyes of a player at (12.5, 11.5) who looks along +z


@jax.jit
def attack(blocks, player, breaking, attacking, held, slowed, multiplier):
    sight = cast(blocks, clearance_of(blocks), physics.eye(player), *look_direction(player.yaw, player.pitch), 16)
    return mining.attack(blocks, sight, breaking, attacking, held, slowed, multiplier)


def facing(block: int, distance: int = 0) -> np.ndarray:
    blocks = flat()
    blocks[AT_EYES[0], AT_EYES[1], AT_EYES[2] + distance] = block
    return blocks


def dig(blocks, keys, multiplier=1.0, player=None, breaking=IDLE, held=items.NONE, slowed=1.0):
    """One tick for each entry of `keys`; broken block ids, blocks and breaking after every one."""
    player = player or standing(12.5, 11.5)
    broken, blocks = [], jnp.asarray(blocks)
    for names in keys:
        mined = attack(blocks, player, breaking, jnp.bool_("attack" in names), jnp.int32(held), slowed, multiplier)
        blocks, breaking = mined.blocks, mined.breaking
        broken.append(int(mined.broken))
    return broken, np.asarray(blocks), breaking


HOLD = ("attack",)


# block -> ticks by hand and with tools of wood, stone, iron and diamond; where nothing drops, with a minus.
TICKS = {
    "dirt": ("shovel", 15, 8, 4, 3, 2),
    "sand": ("shovel", 15, 8, 4, 3, 2),
    "grass_block": ("shovel", 18, 9, 5, 3, 3),
    "gravel": ("shovel", 18, 9, 5, 3, 3),
    "oak_leaves": ("pickaxe", 6, 6, 6, 6, 6),
    "oak_log": ("axe", 60, 30, 15, 10, 8),
    "oak_planks": ("axe", 60, 30, 15, 10, 8),
    "crafting_table": ("axe", 75, 38, 19, 13, 10),
    "white_wool": ("axe", 24, 24, 24, 24, 24),
    "pumpkin": ("axe", 30, 15, 8, 5, 4),
    "stone": ("pickaxe", -150, 23, 12, 8, 6),
    "cobblestone": ("pickaxe", -200, 30, 15, 10, 8),
    "sandstone": ("pickaxe", -80, 12, 6, 4, 3),
    "furnace": ("pickaxe", -350, 53, 27, 18, 14),
    "coal_ore": ("pickaxe", -300, 45, 23, 15, 12),
    "iron_ore": ("pickaxe", -300, -150, 23, 15, 12),
    "lapis_ore": ("pickaxe", -300, -150, 23, 15, 12),
    "gold_ore": ("pickaxe", -300, -150, -75, 15, 12),
    "diamond_ore": ("pickaxe", -300, -150, -75, 15, 12),
    "redstone_ore": ("pickaxe", -300, -150, -75, 15, 12),
    "obsidian": ("pickaxe", -5000, -2500, -1250, -834, 188),
}


@jax.jit
def ticks_to_break(blocks, held):
    """How many ticks of holding attack it takes, and whether the block drops something."""
    player = standing(12.5, 11.5)
    # Seen once: nothing moves before the block breaks.
    sight = cast(blocks, clearance_of(blocks), physics.eye(player), *look_direction(player.yaw, player.pitch), 16)

    def one(carry):
        blocks, breaking, ticks, _, _ = carry
        mined = mining.attack(blocks, sight, breaking, jnp.bool_(True), held, 1.0, 1.0)
        return mined.blocks, mined.breaking, ticks + 1, mined.broken != b.AIR, mined.harvested

    no = jnp.bool_(False)
    start = (blocks, IDLE, jnp.int32(0), no, no)
    _, _, ticks, _, harvested = jax.lax.while_loop(lambda carry: ~carry[3] & (carry[2] < 6000), one, start)
    return ticks, harvested


@pytest.mark.parametrize("block", TICKS)
def test_blocks_take_vanillas_ticks_with_every_tool_and_drop_only_for_the_right_one(block):
    tool, *expected = TICKS[block]
    held = [items.NONE] + [items.ID[f"{tier}_{tool}"] for tier in ("wooden", "stone", "iron", "diamond")]
    found = [ticks_to_break(jnp.asarray(facing(b.ID[block])), jnp.int32(item)) for item in held]
    signed = [int(ticks) if harvested else -int(ticks) for ticks, harvested in found]
    # Thousands of float32 steps may end one tick beside the formula's.
    assert np.abs(np.array(signed) - expected).max() <= (1 if block == "obsidian" else 0), signed


def test_a_sword_cuts_leaves_and_nothing_else():
    sword = jnp.int32(items.ID["iron_sword"])
    assert int(ticks_to_break(jnp.asarray(facing(b.LEAVES)), sword)[0]) == 4
    assert int(ticks_to_break(jnp.asarray(facing(b.DIRT)), sword)[0]) == 15


def test_a_broken_block_is_gone_and_no_other():
    broken, blocks, _ = dig(facing(b.DIRT), [HOLD] * 15)
    assert broken == [b.AIR] * 14 + [b.DIRT]
    assert blocks[AT_EYES] == b.AIR
    assert (blocks != facing(b.DIRT)).sum() == 1


def test_the_multiplier_divides_the_time():
    broken, _, _ = dig(facing(b.LOG), [HOLD] * 6, multiplier=10.0)
    assert broken == [b.AIR] * 5 + [b.LOG]


def test_slowed_to_a_fifth_it_takes_five_times_as_long():
    broken, _, _ = dig(facing(b.LEAVES), [HOLD] * 30, slowed=0.2)
    assert broken == [b.AIR] * 29 + [b.LEAVES]


def test_a_released_key_loses_the_progress():
    broken, _, _ = dig(facing(b.DIRT), [HOLD] * 14 + [()] + [HOLD] * 14)
    assert set(broken) == {b.AIR}


def test_another_target_loses_the_progress():
    blocks = facing(b.DIRT)
    blocks[AT_EYES[0] + 1, AT_EYES[1], AT_EYES[2]] = b.DIRT
    _, blocks, breaking = dig(blocks, [HOLD] * 14)
    aside = standing(13.5, 11.5)
    _, _, breaking = dig(blocks, [HOLD], player=aside, breaking=breaking)
    np.testing.assert_allclose(breaking.progress, 1 / 15, rtol=1e-5)


def test_five_ticks_pass_before_the_next_block_unless_the_last_broke_at_once():
    blocks = facing(b.LEAVES)
    blocks[AT_EYES[0], AT_EYES[1], AT_EYES[2] + 1] = b.LEAVES
    broken, _, _ = dig(blocks, [HOLD] * 17)
    assert broken == [b.AIR] * 5 + [b.LEAVES] + [b.AIR] * 10 + [b.LEAVES]
    broken, _, _ = dig(blocks, [HOLD] * 2, multiplier=6.0)
    assert broken == [b.LEAVES, b.LEAVES]


def test_nothing_beyond_reach_and_nothing_unbreakable_breaks():
    for blocks in (facing(b.LEAVES, distance=4), facing(b.BEDROCK), facing(b.BARRIER)):
        broken, after, _ = dig(blocks, [HOLD] * 40, multiplier=100.0)
        assert set(broken) == {b.AIR}
        np.testing.assert_array_equal(after, blocks)
    broken, _, _ = dig(facing(b.LEAVES, distance=3), [HOLD] * 6)  # its face is 4.5 - 0.0 blocks away
    assert broken[-1] == b.LEAVES


def test_nothing_breaks_without_the_key():
    broken, after, _ = dig(facing(b.LEAVES), [("forward",)] * 10, multiplier=100.0)
    assert set(broken) == {b.AIR}
    np.testing.assert_array_equal(after, facing(b.LEAVES))
