from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import mining
from minestudio_jax.envs.voxel.state import Breaking
from tests.envs.voxel.worlds import FLOOR, controls, flat, standing

IDLE = Breaking(jnp.zeros(3, jnp.int32), jnp.float32(0), jnp.int32(0))
AT_EYES = (12, FLOOR + 1, 13)  # the cell before the eyes of a player at (12.5, 11.5) who looks along +z

attack = jax.jit(mining.attack)


def facing(block: int, distance: int = 0) -> np.ndarray:
    blocks = flat()
    blocks[AT_EYES[0], AT_EYES[1], AT_EYES[2] + distance] = block
    return blocks


def dig(blocks, keys, multiplier=1.0, player=None, breaking=IDLE):
    """One tick for each entry of `keys`; broken block ids, blocks and breaking after every one."""
    player = player or standing(12.5, 11.5)
    broken, blocks = [], jnp.asarray(blocks)
    for names in keys:
        mined = attack(blocks, player, breaking, controls(*names), multiplier)
        blocks, breaking = mined.blocks, mined.breaking
        broken.append(int(mined.broken))
    return broken, np.asarray(blocks), breaking


HOLD = ("attack",)


@pytest.mark.parametrize(
    ("block", "ticks"), [(b.DIRT, 15), (b.GRASS, 18), (b.LOG, 60), (b.LEAVES, 6), (b.STONE, 150)], ids=lambda x: str(x)
)
def test_blocks_take_vanillas_ticks_by_hand(block, ticks):
    broken, blocks, _ = dig(facing(block), [HOLD] * ticks)
    assert broken == [b.AIR] * (ticks - 1) + [block]
    assert blocks[AT_EYES] == b.AIR
    assert (blocks != facing(block)).sum() == 1


def test_the_multiplier_divides_the_time():
    broken, _, _ = dig(facing(b.LOG), [HOLD] * 6, multiplier=10.0)
    assert broken == [b.AIR] * 5 + [b.LOG]


def test_in_the_air_it_takes_five_times_as_long():
    player = dataclasses.replace(standing(12.5, 11.5), on_ground=jnp.bool_(False))
    broken, _, _ = dig(facing(b.LEAVES), [HOLD] * 30, player=player)
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
