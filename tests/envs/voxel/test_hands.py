from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import voxel
from minestudio_jax.envs.tasks import MobGroup
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import drops as lying
from minestudio_jax.envs.voxel import hands, items, mobs, physics, survival
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.raycast import cast, look_direction
from tests.envs.voxel.worlds import FLOOR, flat, standing


@jax.jit
def use(blocks, player, inventory, vitals, state, using):
    look = look_direction(player.yaw, player.pitch)
    sight = cast(blocks, clearance_of(blocks), physics.eye(player), *look, 16)
    return hands.use(blocks, player, look, sight, inventory, vitals, state, using)


def hold_use(blocks, player, contents, ticks, vitals=None):
    blocks, inventory = jnp.asarray(blocks), inv.start_inventory(contents)
    vitals, state, used = vitals or survival.healthy(), hands.resting(), []
    for _ in range(ticks):
        result = use(blocks, player, inventory, vitals, state, jnp.bool_(True))
        blocks, inventory, vitals, state = result.blocks, result.inventory, result.vitals, result.hands
        used.append(int(result.item))
    return np.asarray(blocks), inventory, vitals, used


def looking(pitch=0.0, yaw=0.0):
    return dataclasses.replace(standing(12.5, 12.5, yaw=yaw), pitch=jnp.float32(pitch))


def test_a_block_is_placed_against_the_face_that_is_looked_at():
    blocks = flat()
    blocks[12, FLOOR + 1, 15] = b.STONE
    for yaw, wall, cell in ((0, (12, 15), (12, 14)), (90, (9, 12), (10, 12)), (-90, (15, 12), (14, 12))):
        blocks = flat()
        blocks[wall[0], FLOOR + 1, wall[1]] = b.STONE
        after, inventory, _, used = hold_use(blocks, looking(yaw=yaw), {"dirt": 2}, 1)
        changed = np.argwhere(after != blocks)
        assert changed.tolist() == [[cell[0], FLOOR + 1, cell[1]]]
        assert after[tuple(changed[0])] == b.DIRT
        assert int(inv.count_of(inventory, b.DIRT)) == 1
        assert used == [b.DIRT]


def test_on_the_ground_it_is_placed_on_top():
    after, *_ = hold_use(flat(), looking(pitch=45.0), {"dirt": 1}, 1)
    changed = np.argwhere(after != flat())
    assert changed.tolist() == [[12, FLOOR, 14]]


def test_nothing_is_placed_into_the_player_out_of_reach_or_with_an_empty_hand():
    for player, contents in (
        (looking(pitch=90.0), {"dirt": 1}),
        (looking(), {"dirt": 1}),
        (looking(pitch=45.0), {"stick": 1}),
    ):
        after, inventory, _, used = hold_use(flat(), player, contents, 3)
        assert (after == flat()).all()
        assert set(used) == {items.NONE}
        assert int(inventory.count[0]) == 1


def test_a_held_key_places_every_fourth_tick():
    blocks = flat()
    blocks[12, FLOOR + 1, 17] = b.STONE
    _, _, _, used = hold_use(blocks, looking(), {"dirt": 9}, 9)
    assert [item == b.DIRT for item in used] == [True, False, False, False, True, False, False, False, True]


def test_food_is_eaten_in_32_ticks_when_one_is_hungry():
    hungry = dataclasses.replace(survival.healthy(), food=jnp.int32(10), saturation=jnp.float32(0))
    _, inventory, vitals, used = hold_use(flat(), looking(), {"cooked_beef": 2}, 32, hungry)
    assert used == [items.NONE] * 31 + [items.ID["cooked_beef"]]
    assert (int(vitals.food), float(vitals.saturation)) == (18, pytest.approx(12.8))
    assert int(inventory.count[0]) == 1
    _, inventory, *_ = hold_use(flat(), looking(), {"cooked_beef": 2}, 40)
    assert int(inventory.count[0]) == 2  # not hungry


def one_mob(kind, z, hurt_ticks=0):
    made = mobs.spawn(
        jax.random.key(0),
        jnp.asarray(flat()),
        jnp.full((24, 24), FLOOR - 1),
        jnp.array([12.5, FLOOR, 12.5]),
        [MobGroup(kind, 1)],
    )
    return dataclasses.replace(
        made, position=jnp.array([[12.5, FLOOR, z]], jnp.float32), hurt_ticks=jnp.array([hurt_ticks], jnp.int32)
    )


@jax.jit
def hit(blocks, player, creatures, held, state):
    look = look_direction(player.yaw, player.pitch)
    sight = cast(blocks, clearance_of(blocks), physics.eye(player), *look, 16)
    return hands.strike(player, look, sight, creatures, held, state, jnp.bool_(True), True)


def strike(z=14.5, held="iron_sword", kind="zombie", blocks=None, hurt_ticks=0, swing_ticks=100, was_down=False):
    state = dataclasses.replace(
        hands.resting(), swing_ticks=jnp.int32(swing_ticks), attack_was_down=jnp.bool_(was_down)
    )
    blocks = jnp.asarray(flat() if blocks is None else blocks)
    return hit(blocks, looking(), one_mob(kind, z, hurt_ticks), jnp.int32(items.ID.get(held, items.NONE)), state)


def test_a_hit_takes_the_weapons_damage_and_knocks_back():
    struck = strike()
    assert float(struck.damage) == 6
    assert float(struck.mobs.health[0]) == 14
    assert struck.mobs.velocity[0, 2] > 0.3 < struck.mobs.velocity[0, 1]
    assert float(strike(held="").damage) == 1
    assert float(strike(held="diamond_sword").damage) == 7


def test_a_hurried_blow_is_a_weak_one():
    assert float(strike(swing_ticks=0).damage) == pytest.approx(6 * (0.2 + 0.8 * 0.04**2), rel=1e-4)
    assert float(strike(swing_ticks=6).damage) == pytest.approx(6 * (0.2 + 0.8 * 0.52**2), rel=1e-4)


def test_a_blow_misses_what_is_far_behind_a_wall_just_hurt_or_when_the_key_was_down_already():
    wall = flat()
    wall[:, FLOOR + 1, 13] = b.STONE
    for missed in (strike(z=17.0), strike(blocks=wall), strike(was_down=True)):
        assert not missed.swings
        assert float(missed.damage) == 0
    assert float(strike(hurt_ticks=5).damage) == 0


def test_a_mob_that_stands_around_the_eye_is_hit():
    struck = strike(z=12.5)
    assert struck.swings
    assert float(struck.damage) == 6


def test_what_has_no_health_left_dies():
    weak = dataclasses.replace(one_mob("zombie", 14.5), health=jnp.array([5.0]))
    struck = hit(jnp.asarray(flat()), looking(), weak, jnp.int32(items.ID["iron_sword"]), hands.resting())
    assert int(struck.killed) == mobs.ID["zombie"]
    assert int(struck.mobs.kind[0]) == 0


def test_a_blow_into_the_air_locks_the_key_for_half_a_second_unless_it_is_let_go():
    """In vanilla dirt in the line of sight 3 ticks later takes its 15 ticks only from the end of the lockout on."""
    world = voxel.make("collect_dirt", preset="vanilla", action_set="minerl", size=24, height=20)
    step = jax.jit(world.step)
    meadow = np.where(flat(24, 20) == b.STONE, b.DIRT, flat(24, 20)).astype(np.uint8)
    blocks = jnp.asarray(meadow)
    start = dataclasses.replace(
        jax.jit(world.reset)(jax.random.key(0)),
        blocks=blocks,
        clearance=clearance_of(blocks),
        player=dataclasses.replace(standing(12.5, 12.5), pitch=jnp.float32(-30)),
    )

    def ticks_until_broken(pressed):
        state = start
        for tick in range(60):
            turn = 110.0 if tick == 3 else 0.0
            action = {"attack": jnp.int32(pressed(tick)), "camera": jnp.array([turn, 0.0], jnp.float32)}
            state, _ = step(state, action)
            if int(state.statistics.mine_block.sum()):
                return tick - 3
        return None

    held, let_go, late = (ticks_until_broken(f) for f in (lambda t: 1, lambda t: t != 2, lambda t: t >= 3))
    assert let_go == late == 14  # the fifteenth tick
    assert held == 14 + hands.MISS_TICKS - 2


def test_what_is_thrown_away_flies_lies_and_is_picked_up_again_two_seconds_later():
    world = voxel.make("build_pillar", preset="vanilla", action_set="minerl", size=24, height=20)
    step = jax.jit(world.step)
    state = jax.jit(world.reset)(jax.random.key(0))
    state = dataclasses.replace(state, player=dataclasses.replace(state.player, pitch=jnp.float32(80)))
    counts, dropped = [], []
    for tick in range(60):
        state, _ = step(state, {"drop": jnp.int32(tick < 10)})  # held: one item, not ten
        counts.append(int(inv.count_of(state.inventory, b.DIRT)))
        dropped.append(int(state.statistics.drop[b.DIRT]))
    assert dropped == [1] * 60
    back = counts.index(64)
    assert set(counts[:back]) == {63}
    assert set(counts[back:]) == {64}
    assert lying.THROWN_DELAY_TICKS + lying.PICKUP_DELAY_TICKS - 1 <= back <= 52


def test_tools_stay_in_the_hand():
    inventory = inv.start_inventory({"iron_sword": 1, "dirt": 3})
    look = look_direction(jnp.float32(0), jnp.float32(0))
    thrown = hands.throw(looking(), look, inventory, hands.resting(), jnp.bool_(True))
    assert int(thrown.item) == items.NONE
    assert int(inv.count_of(thrown.inventory, items.ID["iron_sword"])) == 1
