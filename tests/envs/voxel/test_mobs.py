from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.tasks import MobGroup
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import mobs
from tests.envs.voxel.worlds import FLOOR, flat, standing

GROUND = jnp.full((24, 24), FLOOR - 1)
move = jax.jit(mobs.move)


def herd(numbers, seed=0, around=(12.5, 12.5)):
    position = jnp.array([around[0], FLOOR, around[1]], jnp.float32)
    groups = [MobGroup(kind, number) for kind, number in numbers.items()]
    return mobs.spawn(jax.random.key(seed), jnp.asarray(flat()), GROUND, position, groups)


def live(creatures, player, ticks, blocks=None, seed=0):
    """Positions [ticks, M, 3] and damage [ticks] while the player stands still."""
    blocks = jnp.asarray(flat() if blocks is None else blocks)
    positions, damage = [], []
    for tick in range(ticks):
        creatures, bite = move(jax.random.fold_in(jax.random.key(seed), tick), blocks, player, creatures)
        positions.append(np.asarray(creatures.position))
        damage.append(float(bite.damage))
    return np.array(positions), np.array(damage), creatures


def test_they_begin_on_the_ground_near_the_player_but_not_on_him():
    for seed in range(5):
        creatures = herd({"cow": 5, "zombie": 2}, seed)
        assert np.asarray(creatures.kind).tolist() == [1] * 5 + [4] * 2
        away = np.asarray(creatures.position)[:, [0, 2]] - 12.5
        assert (np.hypot(*away.T) > 2.5).all()
        assert (np.asarray(creatures.position)[:, 1] == FLOOR).all()


@pytest.mark.parametrize("around", [(3.5, 3.5), (20.5, 3.5), (3.5, 12.5), (12.5, 12.5)])
def test_beside_a_wall_they_begin_on_the_players_other_side(around):
    for seed in range(5):
        position = jnp.array([around[0], FLOOR, around[1]], jnp.float32)
        groups = [MobGroup("zombie", 8), MobGroup("cow", 8, 30)]
        creatures = mobs.spawn(jax.random.key(seed), jnp.asarray(flat()), GROUND, position, groups)
        where = np.asarray(creatures.position)[:, [0, 2]]
        assert (np.hypot(*(where - np.array(around)).T) > 2.5).all()
        assert ((where > 3) & (where < 21)).all()


def test_animals_stroll_now_and_then_and_stay_on_the_ground():
    positions, damage, _ = live(herd({"cow": 4, "sheep": 4, "pig": 4}), standing(12.5, 12.5), 300)
    walked = np.hypot(*(positions[-1] - positions[0])[:, [0, 2]].T)
    assert (walked > 0.5).sum() >= 4
    assert (np.abs(positions[:, :, 1] - FLOOR) < 1.3).all()
    still = (np.abs(np.diff(positions, axis=0)).sum(axis=-1) < 1e-6).mean()
    assert 0.2 < still < 0.95
    assert damage.max() == 0


def test_a_zombie_comes_and_hits_once_a_second():
    creatures = dataclasses.replace(herd({"zombie": 1}), position=jnp.array([[12.5, FLOOR, 18.5]], jnp.float32))
    player = standing(12.5, 12.5)
    positions, damage, _ = live(creatures, player, 150)
    steps = np.diff(positions[:30, 0, 2])
    assert -steps[10:].mean() == pytest.approx(0.23**2 / 0.454, rel=0.05)
    hits = np.flatnonzero(damage)
    assert set(damage[hits]) == {3.0}
    assert 30 < hits[0] < 70
    assert set(np.diff(hits)) == {mobs.HIT_PAUSE_TICKS + 1}
    assert abs(positions[-1, 0, 2] - 12.5) > 0.5  # it does not walk into him


def test_a_step_of_one_block_does_not_stop_a_zombie_and_a_wall_of_two_does():
    for height, comes in ((1, True), (2, False)):
        blocks = flat()
        blocks[1:-1, FLOOR : FLOOR + height, 15] = b.STONE
        creatures = dataclasses.replace(herd({"zombie": 1}), position=jnp.array([[12.5, FLOOR, 18.5]], jnp.float32))
        positions, _, _ = live(creatures, standing(12.5, 12.5), 200, blocks)
        assert (positions[-1, 0, 2] < 14.5) == comes, height


def test_a_hit_animal_runs_away():
    creatures = dataclasses.replace(herd({"cow": 1}), position=jnp.array([[12.5, FLOOR, 14.5]], jnp.float32))
    struck, damage, killed = mobs.hurt(creatures, jnp.int32(0), jnp.float32(3.0), jnp.array([12.5, FLOOR, 12.5]))
    assert (float(damage), int(killed)) == (3, 0)
    positions, _, _ = live(struck, standing(12.5, 12.5), 60)
    path = np.abs(np.diff(positions[:, 0], axis=0))[:, [0, 2]].sum()
    assert path > 4
    again, damage, _ = mobs.hurt(struck, jnp.int32(0), jnp.float32(3.0), jnp.array([12.5, FLOOR, 12.5]))
    assert float(damage) == 0  # the last hit is too fresh
    assert float(again.health[0]) == 7


def test_nothing_walks_into_blocks():
    rng = np.random.default_rng(0)
    blocks = flat(24, 12)
    blocks[1:-1, FLOOR : FLOOR + 2, 1:-1] = np.where(rng.random((22, 2, 22)) < 0.1, b.STONE, b.AIR)
    creatures = herd({"zombie": 3, "pig": 3})
    clear = np.asarray(creatures.position)
    for x, _, z in np.floor(clear).astype(int):
        blocks[x - 1 : x + 2, FLOOR : FLOOR + 2, z - 1 : z + 2] = b.AIR
    positions, _, creatures = live(creatures, standing(12.5, 12.5), 200, blocks)
    half = 0.3 - 1e-3
    for x, y, z in positions.reshape(-1, 3):
        for dx in (-half, half):
            for dz in (-half, half):
                cell = np.floor([x + dx, y + 0.01, z + dz]).astype(int)
                assert not b.SOLID[blocks[tuple(cell)]], (x, y, z)


def test_an_empty_slot_stays_empty_and_harmless():
    creatures = dataclasses.replace(herd({"zombie": 1}, around=(12.5, 12.5)), kind=jnp.zeros(1, jnp.int32))
    positions, damage, _ = live(creatures, standing(12.5, 12.5), 30)
    assert damage.max() == 0
    assert (positions == positions[0]).all()


def test_zombies_burn_by_day_under_the_open_sky():
    """Half a heart a second; not at night, not under a roof, and cows not at all."""
    creatures = herd({"zombie": 1, "cow": 1})
    burn, player = jax.jit(mobs.burn), standing(12.5, 12.5)

    def health_after(creatures, blocks, begin, ticks=41, day_cycle=1):
        for tick in range(ticks):
            creatures, _ = move(jax.random.key(tick), jnp.asarray(blocks), player, creatures)
            creatures = burn(jnp.asarray(blocks), creatures, jnp.int32(begin + tick * day_cycle))
        return np.asarray(creatures.health).tolist(), np.asarray(creatures.kind).tolist()

    roof = flat()
    roof[1:-1, FLOOR + 6, 1:-1] = b.PLANKS
    zombie, cow = mobs.ID["zombie"], mobs.ID["cow"]
    assert health_after(creatures, flat(), 1000) == ([17, 10], [zombie, cow])
    for still in (1000, 1001):
        assert health_after(creatures, flat(), still, day_cycle=0)[0] == [17, 10]
    assert health_after(creatures, roof, 1000) == ([20, 10], [zombie, cow])
    assert health_after(creatures, flat(), 18000) == ([20, 10], [zombie, cow])
    burnt = burn(jnp.asarray(flat()), creatures, jnp.int32(1000))
    assert np.asarray(mobs.shown_hurt(burnt)).tolist() == [True, False]
    _, damage, _ = mobs.hurt(burnt, jnp.int32(0), jnp.float32(6.0), player.position)
    assert float(damage) == 6  # a blow counts all the same
    weak = dataclasses.replace(creatures, health=jnp.array([1.0, 10.0]))
    assert health_after(weak, flat(), 1000, ticks=1) == ([0, 10], [0, cow])
