from __future__ import annotations

import pytest

from minestudio_jax.envs.callbacks.gate_reward import GateReward, gate_score
from minestudio_jax.envs.callbacks.voxels import Voxels
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.envs.tasks import RewardTerm
from tests.envs.scripted_simulator import NOTHING, ScriptedSimulator

# The frame along z, from its lowest corner once around, and what it encloses.
FRAME = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 3), (0, 2, 3), (0, 3, 3), (0, 4, 3), (0, 4, 2), (0, 4, 1),
         (0, 4, 0), (0, 3, 0), (0, 2, 0), (0, 1, 0)]  # fmt: skip
HOLE = [(0, y, z) for y in (1, 2, 3) for z in (1, 2)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("at", [(0, 0, 0), (-3, 60, 8)])
def test_the_score_of_a_frame_as_it_grows(turned, at):
    def placed(cells):
        return [(at[0] + (z if turned else x), at[1] + y, at[2] + (x if turned else z)) for x, y, z in cells]

    assert gate_score([]) == 0
    for number in range(1, 13):
        assert gate_score(placed(FRAME[:number])) == pytest.approx(0.9 * number)
    assert gate_score(placed(FRAME[:13])) == pytest.approx(13 + 1 - 1.3)
    assert gate_score(placed(FRAME)) == pytest.approx(14 + 2 - 1.4)
    assert gate_score(placed([*FRAME, HOLE[0]])) == pytest.approx(14 + 2 - 1 - 1.5)
    assert gate_score(placed([*FRAME, (0, 9, 9)])) == pytest.approx(14 + 2 - 1.5)
    assert gate_score(placed([*FRAME, *HOLE])) == pytest.approx(14 + 2 - 6 - 2.0)


def test_too_much_of_it_scores_nothing():
    assert gate_score([(3 * i, 0, 3 * j) for i in range(10) for j in range(10)]) == 0


def voxels(*cells):
    stone = {"x": 9, "y": 0, "z": 0, "type": "stone"}
    return {"voxels": [stone, *({"x": x, "y": y, "z": z, "type": "minecraft:obsidian"} for x, y, z in cells)]}


def test_its_change_is_paid_and_what_stood_there_before_is_not():
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(
        simulator, [Voxels(), GateReward(RewardTerm("frame", "structure", ("nether_portal",), 2.0))]
    )
    simulator.state = voxels(*FRAME[:2])
    env.reset()
    assert all(keys["voxels"] == [-7, 7, -7, 7, -7, 7] for kind, keys in simulator.asked if kind == "step")
    paid, sums = [], []
    for state in (voxels(*FRAME[:2]), voxels(*FRAME[:4]), {}, voxels(*FRAME[:3]), voxels(*FRAME[:4])):
        simulator.state = state
        _, reward, _, _, info = env.step(NOTHING)
        assert simulator.asked[-1][1]["voxels"] == [-7, 7, -7, 7, -7, 7]
        paid.append(reward)
        sums.append(info["reward/frame"])
    assert paid == pytest.approx([0, 3.6, 0, -1.8, 1.8])
    assert sums == pytest.approx([0, 3.6, 3.6, 1.8, 3.6])


def test_a_simulator_that_tells_no_blocks_is_no_place_for_it():
    env = MinecraftEnvironment(
        ScriptedSimulator(), [GateReward(RewardTerm("frame", "structure", ("nether_portal",), 2.0))]
    )
    with pytest.raises(EnvironmentFailure, match="'frame' looks at the blocks around the player"):
        env.reset()
