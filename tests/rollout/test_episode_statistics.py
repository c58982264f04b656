"""What is said of finished episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minestudio_jax.rollout import episode_statistics
from minestudio_jax.rollout.episode_statistics import Episode, EpisodeStatistics, said_reward_terms, said_success


def episode(total, success=None, task="a", length=10, discounted=0.0):
    return Episode(float(total), discounted, length, success, task, 1)


def test_every_episode_counts_once_whatever_its_length():
    """D-58: not weighted by steps, nor by the worker or the report it came in."""
    statistics = EpisodeStatistics(["a"])
    statistics.add([episode(0, length=1000), episode(1, length=10, discounted=0.5)])
    statistics.add([episode(5, length=1, discounted=2.5)])
    metrics = statistics.drain()
    assert metrics["episode/count"] == 3
    assert metrics["episode/return_mean"] == 2.0
    assert metrics["episode/discounted_return_mean"] == 1.0
    assert metrics["episode/length_mean"] == 337.0
    assert (metrics["episode/return_min"], metrics["episode/return_max"]) == (0.0, 5.0)
    assert statistics.drain()["episode/count"] == 0


def test_quantiles_of_the_returns():
    statistics = EpisodeStatistics(["a"])
    statistics.add(episode(total) for total in np.random.default_rng(0).permutation(101))
    metrics = statistics.drain()
    assert [metrics[f"episode/return_p{q}"] for q in (10, 50, 90)] == [10.0, 50.0, 90.0]


def test_success_is_a_share_of_the_episodes_of_which_it_is_known():
    statistics = EpisodeStatistics(["a", "b"])
    statistics.add([episode(1, True), episode(1, False), episode(1), episode(1, True, "b"), episode(1)])
    metrics = statistics.drain()
    assert metrics["episode/success_known"] == 3
    assert metrics["episode/success_rate"] == pytest.approx(2 / 3)
    assert metrics["episode/success_rate/a"] == 0.5
    assert metrics["episode/success_rate/b"] == 1.0
    assert (metrics["episode/count/a"], metrics["episode/count/b"]) == (4, 1)
    assert metrics["episode/success_rate_last_20"] == 0.75  # of each task, and of those the mean


def test_what_is_not_defined_is_not_a_number():
    statistics = EpisodeStatistics(["a"])
    nothing = statistics.drain()
    assert (nothing.pop("episode/count"), nothing.pop("episode/success_known")) == (0, 0)
    assert all(math.isnan(value) for value in nothing.values()), nothing
    statistics.add([episode(1)])
    metrics = statistics.drain()
    assert math.isnan(metrics["episode/success_rate"])
    assert math.isnan(metrics["episode/success_rate_last_20"])
    assert metrics["episode/return_p50"] == 1.0


def test_the_window_is_of_the_last_episodes_of_each_task():
    statistics = EpisodeStatistics(["a", "b"], window=2)
    statistics.add([episode(100), episode(1), episode(3)])
    assert statistics.window_mean() == 2.0
    assert math.isnan(statistics.full_window_mean())
    statistics.add([episode(10, task="b"), episode(20, task="b")])
    assert statistics.full_window_mean() == 8.5


def test_environments_say_of_their_success_or_do_not():
    assert said_success({}) is None
    assert said_success({"success": None}) is None
    assert said_success({"success": np.bool_(True)}) is True
    assert said_success({"success": 0}) is False


def test_what_each_term_of_the_reward_paid_is_told_by_its_name():
    """D-60: an episode that does not know of a term does not count as one in which it paid nothing."""
    info = {"reward/log": 2.0, "reward/sand": 0, "rewards": 1, "success": True}
    assert said_reward_terms(info) == {"log": 2.0, "sand": 0}
    statistics = EpisodeStatistics(["a"])
    for terms in ({"log": 2.0}, {"log": 1.0, "sand": 0.5}, {}):
        statistics.add([Episode(1.0, 1.0, 5, None, "a", 1, terms)])
    drained = statistics.drain()
    assert (drained["episode/reward/log"], drained["episode/reward/sand"]) == (1.5, 0.5)
    later = statistics.drain()
    assert np.isnan(later["episode/reward/log"])
    assert np.isnan(later["episode/reward/sand"])


@pytest.mark.parametrize(
    "paid", [None, "much", [1.0], {}, math.nan, -math.inf, np.float32(np.inf), 10**400], ids=lambda paid: repr(paid)[:9]
)
def test_what_a_term_paid_counts_only_if_it_is_a_finite_number(paid, monkeypatch, caplog):
    monkeypatch.setattr(episode_statistics, "_said", set())
    info = {"reward/log": np.array(2.0, np.float32), "reward/sand": paid}
    statistics = EpisodeStatistics(["a"])
    for _ in range(2):
        statistics.add([Episode(1.0, 1.0, 5, None, "a", 1, said_reward_terms(info))])
    drained = statistics.drain()
    assert drained["episode/reward/log"] == 2.0
    assert "episode/reward/sand" not in drained
    (warning,) = caplog.messages
    assert "'reward/sand'" in warning
    assert "no finite number" in warning
