"""Rewards, success and ends are taken from the rises of statistics that go on counting."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minestudio_jax.envs.callbacks.climbing import Climbing
from minestudio_jax.envs.callbacks.death import Death
from minestudio_jax.envs.callbacks.episode_info import EpisodeInfo
from minestudio_jax.envs.callbacks.rewards import Rewards
from minestudio_jax.envs.callbacks.success import SuccessCondition
from minestudio_jax.envs.callbacks.time_limit import TimeLimit
from minestudio_jax.envs.minecraft import Callback, MinecraftEnvironment, Outcome
from minestudio_jax.envs.tasks import RewardTerm, Success
from tests.envs.scripted_simulator import NOTHING, ScriptedSimulator


def play(callbacks, frames, simulator=None):
    """Steps of one episode that begins with the first of these statistics and sees the others one by one."""
    simulator = simulator or ScriptedSimulator()
    env = MinecraftEnvironment(simulator, callbacks)
    simulator.statistics = frames[0]
    env.reset()
    steps = []
    for statistics in frames[1:]:
        simulator.statistics = statistics
        steps.append(env.step(NOTHING)[1:])
    return steps


def counts_of_minestudio(terms, frames):
    """What MineStudio's RewardsCallback pays in each step, as its source has it."""
    before, memory, paid = frames[0], {}, []
    for info in frames[1:]:
        total = 0.0
        for term in terms:
            delta = 0
            for name in term.objects:
                delta += info.get(term.event, {}).get(name, 0) - before.get(term.event, {}).get(name, 0)
                if delta <= 0:
                    continue
                if memory.get(term.name, 0) < term.max_times:
                    total += term.reward
                    memory[term.name] = memory.get(term.name, 0) + 1
                break
        before = info
        paid.append(total)
    return paid


TERMS = [
    RewardTerm("wood", "mine_block", ("oak_log", "birch_log"), 1.5, 4),
    RewardTerm("oak", "mine_block", ("oak_log",), 0.25, 1000),
    RewardTerm("meat", "kill_entity", ("cow", "sheep", "pig"), -2.0, 3),
    RewardTerm("never", "pickup", ("diamond",), 100.0, 1),
]


@pytest.mark.parametrize("seed", range(20))
def test_rewards_are_counted_as_minestudio_counts_them(seed):
    """Once a step however far the counts rise, whichever object rises, up to the cap: over games made by chance."""
    rng = np.random.default_rng(seed)
    names = [("mine_block", "oak_log"), ("mine_block", "birch_log"), ("kill_entity", "cow"), ("kill_entity", "pig")]
    counts = {name: int(rng.integers(0, 5)) for name in names}  # of earlier episodes in the same world
    frames = []
    for _ in range(40):
        frame: dict[str, dict[str, int]] = {}
        for (event, name), count in counts.items():
            if count:  # zeros are missing
                frame.setdefault(event, {})[name] = count
        frames.append(frame)
        for name in names:
            counts[name] += int(rng.integers(1, 4)) if rng.random() < 0.2 else 0
    expected = counts_of_minestudio(TERMS, frames)
    assert any(expected)
    assert [reward for reward, *_ in play([Rewards(TERMS)], frames)] == pytest.approx(expected)


def logs(*counts):
    return [{"mine_block": {"oak_log": count}} if count else {} for count in counts]


def test_terms_are_paid_by_count_where_they_say_so():
    terms = [RewardTerm("log", "mine_block", ("oak_log",), 2.0, 5, per="count")]
    steps = play([Rewards(terms)], logs(7, 7, 10, 11, 20, 30))
    assert [reward for reward, *_ in steps] == [0, 6, 2, 2, 0]
    assert steps[-1][3] == {"reward/log": 10.0}


class Sevens(Callback):
    def after_step(self, simulator, outcome):
        return dataclasses.replace(outcome, reward=outcome.reward + 7, info={**outcome.info, "sevens": True})


def test_rewards_add_up_whatever_their_order_and_every_term_is_told():
    """D-60: callbacks add, each term is told by its name, and nothing of a step or an episode is left in the next."""
    terms = [RewardTerm("log", "mine_block", ("oak_log",), 1.0), RewardTerm("half", "mine_block", ("oak_log",), 0.5)]
    for callbacks in ([Rewards(terms), Sevens()], [Sevens(), Rewards(terms)]):
        steps = play(callbacks, logs(0, 1, 1, 3))
        assert [reward for reward, *_ in steps] == [8.5, 7, 8.5]
        assert [info["reward/log"] for *_, info in steps] == [1, 1, 2]
        assert [info["reward/half"] for *_, info in steps] == [0.5, 0.5, 1]
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(simulator, [Rewards(terms)])
    simulator.statistics = logs(1)[0]
    env.reset()
    simulator.statistics = logs(2)[0]
    first = env.step(NOTHING)[4]
    assert env.reset()[1] == {}
    assert env.step(NOTHING)[4] == {"reward/log": 0.0, "reward/half": 0.0}
    assert first == {"reward/log": 1.0, "reward/half": 0.5}


def test_what_an_earlier_episode_has_counted_pays_nothing():
    steps = play([Rewards(TERMS), SuccessCondition(Success("mine_block", ("oak_log",), 2))], logs(9, 9, 10, 11))
    assert [reward for reward, *_ in steps] == [0, 1.75, 1.75]
    assert [info["success"] for *_, info in steps] == [False, False, True]


def test_counts_that_begin_anew_with_a_new_world_pay_for_what_is_done_in_it():
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(simulator, [Rewards(TERMS)])
    for first, then in ((9, 10), (0, 1), (50, 51)):
        simulator.statistics = logs(first)[0]
        env.reset(seed=first)
        simulator.statistics = logs(then)[0]
        assert env.step(NOTHING)[1] == 1.75


def test_a_count_that_is_missing_from_a_frame_does_not_pay_twice():
    steps = play([Rewards(TERMS)], logs(0, 2, 0, 2, 3))
    assert [reward for reward, *_ in steps] == [1.75, 0, 0, 1.75]


def test_success_ends_an_episode_only_if_it_says_so():
    frames = logs(0, 1, 2)
    for ends in (False, True):
        steps = play([SuccessCondition(Success("mine_block", ("oak_log",), 2, ends))], frames)
        assert [terminated for _, terminated, _, _ in steps] == [False, ends]


def test_the_time_limit_truncates_and_does_not_terminate():
    """D-12: nor is it a step early or late."""
    env = MinecraftEnvironment(ScriptedSimulator(), [TimeLimit(3)])
    for _ in range(2):
        env.reset()
        assert [env.step(NOTHING)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_a_death_ends_the_episode_though_the_simulator_goes_on():
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(simulator, [Death()])
    env.reset()
    simulator.state = {"is_alive": True}
    assert not env.step(NOTHING)[2]
    simulator.state = {"is_alive": False}
    assert env.step(NOTHING)[2]


def heights(callback, *frames):
    """Climbed blocks after each frame of (height, on ground or None)."""
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(
        simulator, [callback, Rewards([RewardTerm("up", "custom", ("climb_one_block",), 1.0, per="count")])]
    )
    simulator.state = {"position": (0.0, 64.0, 0.0)}
    env.reset()
    sums = []
    for height, on_ground in frames:
        simulator.state = {"position": (0.0, height, 0.0), **({} if on_ground is None else {"on_ground": on_ground})}
        sums.append(env.step(NOTHING)[4]["reward/up"])
    return sums


def test_height_counts_where_the_player_stands():
    jump = [(64.42, False), (65.25, False), (65.1, False), (65.0, True), (64.0, True), (66.5, True)]
    assert heights(Climbing(), *jump) == [0, 0, 0, 1, 1, 2]
    # A simulator that does not say what stands is judged by the height alone.
    untold = [(64.42, None), (65.249, None), (65.252, None), (65.0, None), (65.0, None), (64.0, None), (64.0, None)]
    assert heights(Climbing(), *untold) == [0, 0, 0, 0, 1, 1, 1]


def test_the_last_step_tells_what_was_counted_in_the_episode():
    simulator = ScriptedSimulator()
    simulator.state = {"health": 12.0, "food": 17}
    frames = [
        {"jump": {}, "mine_block": {"dirt": 4}},
        {"mine_block": {"dirt": 4, "sand": 2}},
        {"mine_block": {"dirt": 7}},
    ]
    steps = play([TimeLimit(2), EpisodeInfo()], frames, simulator)
    assert steps[0][3] == {}
    assert steps[1][3] == {"mine_block": {"dirt": 3}, "health": 12.0, "food_level": 17}


def test_outcomes_are_not_changed_but_replaced():
    frame = ScriptedSimulator().reset(None)
    outcome = Outcome(frame)
    rewards = Rewards(TERMS)
    rewards.after_reset(None, outcome)
    rewards.after_step(None, outcome)
    assert outcome == Outcome(frame)
