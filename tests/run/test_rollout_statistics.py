"""What a continued run remembers of its episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minestudio_jax.rollout.episode_statistics import Episode
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.run import rollout_statistics
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.trainer.state import Counters


@pytest.fixture
def start(tmp_path):
    """Begins, or goes on, with the same file."""
    opened = []

    def make(*tasks):
        for statistics in opened:
            statistics.close()  # more than once is as good
        opened.append(RolloutStatistics(tmp_path / "episodes.jsonl", tasks, lambda: Counters(iteration=3)))
        return opened[-1]

    yield make
    for statistics in opened:
        statistics.close()


def add(statistics, *episodes):
    statistics.add(0, WorkerReport(episodes=list(episodes), version=1))


def drawn(rng, task):
    success = None if task == "b" else bool(rng.integers(2))
    return Episode(rng.normal(), rng.normal(), int(rng.integers(99)), success, task, 7, {"logs": rng.normal()})


def test_a_continued_run_has_the_windows_of_one_that_never_stopped(start):
    """D-40: to the last bit, and each task its own; what was counted is not counted again."""
    rng = np.random.default_rng(0)
    statistics = start("a", "b")
    add(statistics, *[drawn(rng, "b") for _ in range(30)], *[drawn(rng, "a") for _ in range(57)])
    add(statistics, *[drawn(rng, "b") for _ in range(3)])
    expected = statistics.return_mean()
    assert math.isfinite(expected)
    last = [drawn(rng, task) for task in "abaabbb"]
    counted = statistics.drain()
    continued = start("a", "b")
    assert continued.return_mean() == expected
    nothing = continued.drain()
    assert nothing.keys() == counted.keys()
    assert nothing["episode/count"] == 0
    add(statistics, *last)
    add(continued, *last)
    assert continued.return_mean() == statistics.return_mean()
    np.testing.assert_equal(continued.drain(), statistics.drain())


def test_a_new_task_has_no_window_yet_and_one_that_is_no_longer_played_is_left_out(start):
    statistics = start("a", "b")
    add(statistics, *[drawn(np.random.default_rng(0), task) for task in "ab" * 20])
    assert math.isnan(start("a", "c").return_mean())
    assert math.isfinite(start("a").return_mean())


def test_lines_that_are_no_episodes_are_left_out_and_told(start, tmp_path, caplog):
    """D-40: a crash or a full disk may have left anything."""
    statistics = start("a")
    add(statistics, *[Episode(float(n), 0.0, 1, None, "a", 1) for n in range(25)])
    statistics.close()
    with open(tmp_path / "episodes.jsonl", "ab") as file:
        file.write(b'\0\0\0\n{"task": "a"}\n17\n{"return": "x", "task": "a"}\n{"return": 3.0, "disc\n')
    assert start("a").return_mean() == np.mean(range(5, 25))
    assert "5 line(s) at the end of" in caplog.text


def test_without_a_file_or_with_too_few_episodes_there_is_no_mean_yet(start):
    assert math.isnan(start("a").return_mean())
    add(start("a"), *[Episode(1.0, 0.0, 1, None, "a", 1)] * 19)
    continued = start("a")
    assert math.isnan(continued.return_mean())
    add(continued, Episode(21.0, 0.0, 1, None, "a", 1))
    assert continued.return_mean() == 2.0


def test_a_return_that_was_no_number_is_none_again(start):
    add(start("a"), *[Episode(math.nan, 0.0, 1, None, "a", 1)] * 20)
    assert math.isnan(start("a").return_mean())


def test_a_task_that_never_ended_an_episode_has_not_the_whole_file_read(start, monkeypatch):
    monkeypatch.setattr(rollout_statistics, "_LOOK_BACK", 30)
    add(start("a", "b"), *[Episode(1.0, 0.0, 1, None, "b", 1)] * 20, *[Episode(1.0, 0.0, 1, None, "a", 1)] * 20)
    assert math.isnan(start("a", "b").return_mean())
    monkeypatch.setattr(rollout_statistics, "_LOOK_BACK", 40)
    assert start("a", "b").return_mean() == 1.0
