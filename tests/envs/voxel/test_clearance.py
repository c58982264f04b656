from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs import voxel
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel.clearance import LARGEST, WATER, after_breaking, after_placing, clearance_of
from tests.envs.voxel.worlds import FLOOR, flat


def true_clearance(blocks: np.ndarray) -> np.ndarray:
    """By the definition, one shell after the other."""
    cells = np.stack(np.indices(blocks.shape), -1).reshape(-1, 3)
    others = cells[(blocks != b.AIR).reshape(-1)]
    nearest = np.full(len(cells), LARGEST)
    for other in others:
        np.minimum(nearest, np.abs(cells - other).max(axis=1), out=nearest)
    clearance = nearest.reshape(blocks.shape)
    return np.where(blocks == b.WATER, WATER, clearance)


def scattered(seed: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = flat(12, 13)
    inside = np.zeros(blocks.shape, bool)
    inside[1:-1, FLOOR:-1, 1:-1] = True
    filled = rng.choice([b.STONE, b.WATER], blocks.shape)
    return np.where(inside & (rng.random(blocks.shape) < share), filled, blocks).astype(np.uint8)


def test_it_is_the_distance_to_the_nearest_cell_that_is_not_air():
    for seed, share in ((0, 0.0), (1, 0.003), (2, 0.05)):
        blocks = scattered(seed, share)
        np.testing.assert_array_equal(clearance_of(jnp.asarray(blocks)), true_clearance(blocks))


def test_edits_never_state_more_than_there_is_and_placing_states_all():
    rng = np.random.default_rng(3)
    blocks = scattered(3, 0.01)
    clearance = clearance_of(jnp.asarray(blocks))
    breaking, placing = jax.jit(after_breaking), jax.jit(after_placing)
    for _ in range(15):
        cell = tuple(rng.integers(1, np.array(blocks.shape) - 1))
        before, exact = true_clearance(blocks), (np.asarray(clearance) == true_clearance(blocks)).all()
        if blocks[cell] in (b.AIR, b.WATER):
            blocks[cell] = b.STONE
            clearance = placing(clearance, jnp.array(cell), True)
            assert not exact or (np.asarray(clearance) == true_clearance(blocks)).all()
        else:
            blocks[cell] = b.AIR
            clearance = breaking(clearance, jnp.array(cell), True)
            exact = False
        now, true = np.asarray(clearance), true_clearance(blocks)
        assert (now <= true).all()
        assert ((now == 0) == (true == 0)).all()
        assert ((now == WATER) == (true == WATER)).all()
        assert (before != true).any()


def test_what_is_neither_broken_nor_placed_changes_nothing():
    clearance = clearance_of(jnp.asarray(scattered(4, 0.02)))
    cell = jnp.array([5, 6, 7])
    np.testing.assert_array_equal(after_breaking(clearance, cell, jnp.bool_(False)), clearance)
    np.testing.assert_array_equal(after_placing(clearance, cell, jnp.bool_(False)), clearance)


def test_a_played_world_keeps_a_clearance_of_its_blocks():
    """Digging and building by chance for a while."""
    world = voxel.make("build_pillar", preset="toy", size=24, height=20)
    step = jax.jit(world.step)
    state = jax.jit(world.reset)(jax.random.key(0))
    begun = np.asarray(state.blocks)
    for name in [*["look down"] * 4, *("use", "turn left", "attack", "forward", "attack", "jump and use") * 6]:
        state, _ = step(state, {"choice": jnp.array([world.choices.index(name)])})
    blocks, clearance = np.asarray(state.blocks), np.asarray(state.clearance)
    assert (blocks != begun).any()
    true = true_clearance(blocks)
    assert (clearance <= true).all()
    assert ((clearance == 0) == (true == 0)).all()
