"""Instances are replaced although they work: nothing is lost by that, and it is no failure."""

from __future__ import annotations

import time

from minestudio_jax.rollout import process_pool
from minestudio_jax.rollout.env_pool import PoolCounters
from minestudio_jax.rollout.recycling import Recycling
from tests.rollout.pools import act_on, diary_of, play, receive_all


def test_the_first_limit_that_is_passed_is_the_reason():
    """D-49."""

    def reason(recycling, age_s=100.0, steps=1000, mib=500):
        return recycling.reason(age_s, steps, lambda: mib << 20)

    assert reason(Recycling()) == ""
    assert "env.recycle_after_s=100" in reason(Recycling(after_s=100.0))
    assert "env.recycle_after_steps=1000" in reason(Recycling(after_steps=1000))
    assert "500 MiB, env.recycle_above_mib=499" in reason(Recycling(above_mib=499))
    assert reason(Recycling(100.1, 1001, 500)) == ""


def test_memory_is_measured_only_if_it_matters():
    def measure():
        raise AssertionError("measured")

    assert Recycling(after_s=10.0, after_steps=10).reason(1.0, 1, measure) == ""
    assert Recycling(after_s=10.0, above_mib=1).reason(10.0, 1, measure) != ""


def test_the_last_step_of_a_replaced_instance_is_delivered(make_pool, tmp_path):
    """D-14, D-48: with its reward, its end and its final observation; one construction for each life."""
    pool = make_pool(
        end="truncated", recycling=Recycling(after_steps=4), max_failures_per_hour=0, diary=str(tmp_path / "diary")
    )
    rows = play(pool, 10)[0][:10]
    assert rows[2:8] == [
        ([0, 0, 2], 2, set(), None),
        ([0, 1, 0], 3, {"first", "truncated"}, [0, 0, 3]),  # three steps: not yet
        ([0, 1, 1], 11, set(), None),
        ([0, 1, 2], 12, set(), None),
        ([0, 0, 0], 13, {"first", "truncated"}, [0, 1, 3]),  # of the new instance, whose episodes begin at 0
        ([0, 0, 1], 1, set(), None),
    ]
    assert pool.counters == PoolCounters(starts=2, recycled=1)
    assert [what for what, *_ in diary_of(tmp_path)] == ["begin", "ready", "end", "begin", "ready"]


def test_a_slow_farewell_costs_nobody_else_anything_and_ends_by_force(make_pool, monkeypatch, tmp_path):
    monkeypatch.setattr(process_pool, "_RECYCLE_GRACE_S", 2.0)
    pool = make_pool(
        num_envs=2, episode_length=1, recycling=Recycling(after_steps=1), close_s=600.0, diary=str(tmp_path / "diary"),
        slow_to_close=[0],
    )  # fmt: skip
    receive_all(pool)
    begin, pids = time.monotonic(), pool.pids()
    act_on(pool, 0, 1)
    got = play(pool, 1, 0, got={0: [], 1: []})
    assert 2.0 <= time.monotonic() - begin < 8.0
    assert got[0][0][1:3] == (1.0, {"first", "terminated"})
    assert pool.pids()[0] not in (None, pids[0])
    assert got[1], "the other has been replaced meanwhile"
    assert pool.counters.total_failures == 0


def test_an_instance_is_replaced_when_it_is_old(make_pool, tmp_path):
    pool = make_pool(
        num_envs=2, episode_length=2, step_s=0.01, recycling=Recycling(after_s=1.0), diary=str(tmp_path / "diary")
    )
    begin = time.monotonic()
    while pool.counters.recycled < 4:
        play(pool, 1, 1)
    assert time.monotonic() - begin > 0.4
    for index in (0, 1):
        what = [what for what, i, _ in diary_of(tmp_path) if i == index and what != "ready"]
        assert what == ["begin", "end"] * (len(what) // 2) + ["begin"] * (len(what) % 2), "one instance at a time"
    assert pool.counters.total_failures == 0


def test_an_instance_is_replaced_when_it_holds_too_much(make_pool):
    """What counts is also what it has started, in a session of its own here."""
    pool = make_pool(num_envs=2, episode_length=2, step_s=0.01, recycling=Recycling(above_mib=120), child="session",
                     ballast_mib=150, ballast_index=1)  # fmt: skip
    receive_all(pool)
    small, large = pool.pids()
    act_on(pool, 0, 1)
    while pool.counters.recycled < 2:
        play(pool, 1, 1)
    assert pool.pids()[0] == small
    assert pool.pids()[1] != large
    assert pool.counters.total_failures == 0
