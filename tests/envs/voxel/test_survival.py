from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import voxel
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics, survival
from minestudio_jax.envs.voxel.clearance import clearance_of
from tests.envs.voxel.worlds import FLOOR, controls, flat, standing

move = jax.jit(physics.move)


def fallen(height, blocks=None):
    """Half hearts lost by falling from a height onto the floor."""
    blocks = jnp.asarray(flat() if blocks is None else blocks)
    player = dataclasses.replace(
        standing(12.5, 12.5, y=FLOOR + height), velocity=jnp.zeros(3, jnp.float32), on_ground=jnp.bool_(False)
    )
    lost = 0.0
    for _ in range(120):
        after = move(blocks, player, controls())
        lost += float(survival.fall_damage(player, after))
        player = after
    return lost


@pytest.mark.parametrize(("height", "lost"), [(1, 0), (3, 0), (4, 1), (10, 7), (23, 20), (30, 27)])
def test_a_fall_costs_half_a_heart_for_every_block_beyond_three(height, lost):
    assert fallen(height) == lost


def test_water_breaks_a_fall():
    blocks = flat()
    blocks[8:16, FLOOR : FLOOR + 3, 8:16] = b.WATER
    assert fallen(20, blocks) == 0


def test_a_swimmer_floats_up_with_the_jump_key_and_sinks_without():
    blocks = flat()
    blocks[8:16, FLOOR : FLOOR + 6, 8:16] = b.WATER
    for keys, direction in ((("jump",), 1), ((), -1)):
        player = standing(12.5, 12.5, y=FLOOR + 3)
        for _ in range(20):
            player = move(jnp.asarray(blocks), player, controls(*keys))
        assert np.sign(float(player.position[1]) - FLOOR - 3) == direction


def test_hurt_again_only_after_half_a_second_and_never_below_zero():
    vitals, taken = survival.hurt(survival.healthy(), jnp.float32(3.0))
    assert (float(vitals.health), float(taken)) == (17, 3)
    again, taken = survival.hurt(vitals, jnp.float32(5.0))
    assert (float(again.health), float(taken)) == (17, 0)
    ready = dataclasses.replace(vitals, hurt_ticks=jnp.int32(0))
    dead, taken = survival.hurt(ready, jnp.float32(50.0))
    assert (float(dead.health), float(taken)) == (0, 17)


def starve(vitals, ticks, sprinting=False):
    player = standing(12.5, 12.5)
    after = dataclasses.replace(
        player, sprinting=jnp.bool_(sprinting), position=player.position + jnp.array([0.28 * sprinting, 0.0, 0.0])
    )
    lost = 0.0
    hunger = jax.jit(survival.hunger)
    for _ in range(ticks):
        vitals, damage = hunger(vitals, player, after, jnp.bool_(False))
        lost += float(damage)
    return vitals, lost


def test_the_well_fed_heal_and_the_starving_wither():
    wounded = dataclasses.replace(
        survival.healthy(), health=jnp.float32(10.0), food=jnp.int32(18), saturation=jnp.float32(0)
    )
    assert float(starve(dataclasses.replace(wounded, saturation=jnp.float32(5)), 160)[0].health) == 12
    healed, _ = starve(wounded, 160)
    assert (float(healed.health), int(healed.food)) == (11, 17)  # healing made hungry, and the hungry do not heal
    hungry = dataclasses.replace(wounded, food=jnp.int32(17))
    assert float(starve(hungry, 160)[0].health) == 10
    assert starve(dataclasses.replace(wounded, food=jnp.int32(0)), 160)[1] == 2
    almost = dataclasses.replace(wounded, food=jnp.int32(0), health=jnp.float32(1.0))
    assert starve(almost, 160)[1] == 0  # hunger alone does not kill


def test_the_dead_do_not_heal():
    dead = dataclasses.replace(survival.healthy(), health=jnp.float32(0))
    assert float(starve(dead, 160)[0].health) == 0


def test_a_death_within_a_step_ends_what_the_step_does():
    """Hits the ground in the first of many ticks, well fed and with a log before the eyes."""
    world = voxel.make("chop_tree", preset="vanilla", action_set="minerl", frame_skip=40, size=24, height=20,
                       break_speed_multiplier=100.0, instant_pickup=True)  # fmt: skip
    blocks = flat(24, 20)
    blocks[12, FLOOR + 1, 14] = b.LOG
    start = dataclasses.replace(
        jax.jit(world.reset)(jax.random.key(0)), blocks=jnp.asarray(blocks), clearance=clearance_of(jnp.asarray(blocks))
    )
    step = jax.jit(world.step)
    action = {"attack": jnp.int32(1), "camera": jnp.array([0.0, 0.5])}

    def after(health, fallen):
        player = dataclasses.replace(
            standing(12.5, 12.5, y=FLOOR + 0.01), on_ground=jnp.bool_(False), fall_distance=jnp.float32(fallen)
        )
        vitals = dataclasses.replace(survival.healthy(), health=jnp.float32(health))
        return step(dataclasses.replace(start, player=player, vitals=vitals), action)

    _, lives = after(20.0, 0.0)
    assert (float(lives.reward), bool(lives.terminated)) == (1, False)
    state, dies = after(1.0, 10.0)
    assert (float(dies.reward), float(dies.info["health"]), bool(dies.terminated)) == (0, 0, True)
    assert int(dies.info["custom"][2]) == 1  # deaths
    assert int(dies.info["mine_block"].sum()) == 0
    assert float(state.player.yaw) == 0.5  # of the one tick that the player lived in


def test_sprinting_makes_hungry():
    fresh = survival.healthy()
    rested, _ = starve(fresh, 1200)
    tired, _ = starve(fresh, 1200, sprinting=True)
    assert (int(rested.food), float(rested.saturation)) == (20, 5)
    assert int(tired.food) + float(tired.saturation) < 20


def test_death_terminates_the_episode():
    world = voxel.make("combat_zombie", time_limit=400, size=24, height=20, ray_strides=12)
    state, step = jax.jit(world.reset)(jax.random.key(0)), jax.jit(world.step)
    stand = {"choice": jnp.array([world.choices.index("look up")])}
    for _ in range(400):
        state, timestep = step(state, stand)
        if timestep.terminated:
            break
    assert float(timestep.info["health"]) == 0
    assert not timestep.truncated
    assert int(timestep.info["custom"][2]) == 1  # deaths
    assert float(timestep.reward) == -1
