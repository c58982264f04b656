"""Movement against trajectories of prismarine-physics 1.11.1, tick by tick."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import physics
from tests.envs.voxel.worlds import FLOOR, controls, flat, standing

pytestmark = pytest.mark.optimized

X, Z = 12.5, 2.5  # where the trajectories begin; their coordinates count from here
SCENARIOS = {
    "walk": ("forward",),
    "sprint": ("forward", "sprint"),
    "sneak": ("forward", "sneak"),
    "diag": ("forward", "left"),
    "jump": ("jump",),
    "sprintjump": ("forward", "sprint", "jump"),
    "fall": (),
    "jump_onto_block": ("forward", "jump"),
    "walk_into_block": ("forward",),
}

move = jax.jit(physics.move)


def golden_trajectories(golden: Path) -> dict[str, dict[str, list[float]]]:
    """Scenario -> axis -> position after each tick."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in (golden / "physics_trajectories.txt").read_text().splitlines():
        words = line.split()
        if words[0] == "dz":
            continue
        if words[1] == "z":
            scenario, words = words[0], words[1:]
            found[scenario] = {}
        found[scenario][words[0]] = [float(word) for word in words[1:]]
    return found


def walk(blocks, player, keys, ticks):
    positions = []
    for _ in range(ticks):
        player = move(blocks, player, controls(*keys))
        positions.append(np.asarray(player.position))
    return np.array(positions), player


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_positions_are_those_of_the_reference_at_every_tick(golden, scenario):
    expected = golden_trajectories(golden)[scenario]
    blocks = flat()
    player = standing(X, Z)
    if "block" in scenario:
        blocks[:, FLOOR, int(Z) + 5] = b.STONE
    if scenario == "fall":
        player = dataclasses.replace(
            standing(X, Z, y=FLOOR + 30), velocity=jnp.zeros(3, jnp.float32), on_ground=jnp.bool_(False)
        )
    positions, _ = walk(jnp.asarray(blocks), player, SCENARIOS[scenario], len(expected["z"]))
    np.testing.assert_allclose(positions[:, 2] - Z, expected["z"], rtol=0, atol=3e-5)
    if "y" in expected:
        np.testing.assert_allclose(positions[:, 1] - FLOOR, expected["y"], rtol=0, atol=3e-5)


def test_all_scenarios_of_the_reference_are_tried(golden):
    assert set(golden_trajectories(golden)) == set(SCENARIOS)


@pytest.mark.parametrize(
    ("yaw", "keys", "direction"),
    [
        (0, ("forward",), (0, 1)),
        (90, ("forward",), (-1, 0)),
        (-90, ("forward",), (1, 0)),
        (180, ("forward",), (0, -1)),
        (0, ("back",), (0, -1)),
        (0, ("left",), (1, 0)),
        (0, ("right",), (-1, 0)),
    ],
)
def test_directions_are_minecrafts(yaw, keys, direction):
    positions, _ = walk(jnp.asarray(flat()), standing(12.5, 12.5, yaw=yaw), keys, 10)
    moved = positions[-1][[0, 2]] - 12.5
    np.testing.assert_allclose(moved, np.array(direction) * np.abs(moved).max(), atol=1e-5)
    assert np.abs(moved).max() > 1.5


def test_opposite_keys_cancel_and_no_key_keeps_the_player_in_place():
    for keys in ((), ("forward", "back"), ("left", "right")):
        positions, _ = walk(jnp.asarray(flat()), standing(X, Z), keys, 20)
        np.testing.assert_array_equal(positions, np.tile([X, FLOOR, Z], (20, 1)).astype(np.float32))


def test_sneaking_stops_at_an_edge_and_walking_falls():
    blocks = flat()
    blocks[:, FLOOR - 2 : FLOOR, 8:] = b.AIR
    sneaking, player = walk(jnp.asarray(blocks), standing(X, 6.5), ("forward", "sneak"), 60)
    assert player.on_ground
    assert sneaking[-1][1] == FLOOR
    assert 8.0 < sneaking[-1][2] <= 8.3
    walking, _ = walk(jnp.asarray(blocks), standing(X, 6.5), ("forward",), 60)
    assert walking[-1][1] == FLOOR - 2


def test_one_block_needs_a_jump_and_two_stop_the_jumper():
    for height, keys, passes in (
        (1, ("forward",), False),
        (1, ("forward", "jump"), True),
        (2, ("forward", "jump"), False),
    ):
        blocks = flat()
        blocks[:, FLOOR : FLOOR + height, 8] = b.STONE
        positions, _ = walk(jnp.asarray(blocks), standing(X, 6.5), keys, 40)
        assert (positions[-1][2] > 8.5) == passes, (height, keys)


def test_no_motion_ever_enters_a_solid_block():
    """Random keys and turns in a maze; the box never overlaps a cell that is not air."""
    rng = np.random.default_rng(0)
    blocks = flat(24, 12)
    blocks[1:-1, FLOOR : FLOOR + 2, 1:-1] = np.where(rng.random((22, 2, 22)) < 0.15, b.STONE, b.AIR)
    blocks[12, FLOOR : FLOOR + 2, 12] = b.AIR
    world, player = jnp.asarray(blocks), standing(12.5, 12.5)
    names = np.array(["forward", "forward", "left", "right", "jump", "sprint", "sneak"])
    visited = set()
    for _ in range(400):
        if rng.random() < 0.1:
            player = dataclasses.replace(player, yaw=jnp.float32(rng.uniform(-180, 180)))
        player = move(world, player, controls(*names[rng.random(len(names)) < 0.4]))
        x, y, z = np.asarray(player.position, np.float64)
        low = np.floor(np.array([x - 0.3, y, z - 0.3]) + 1e-4).astype(int)
        high = np.floor(np.array([x + 0.3, y + 1.8, z + 0.3]) - 1e-4).astype(int) + 1
        assert not blocks[low[0] : high[0], low[1] : high[1], low[2] : high[2]].any(), (x, y, z)
        visited.add((int(x), int(z)))
    assert len(visited) > 5  # it did get around
