from __future__ import annotations

import concurrent.futures
import subprocess
import sys

from minestudio_jax.rollout.start_limit import StartLimit
from tests.rollout.pools import diary_of, receive_all
from tests.rollout.processes import wait_until


def test_no_more_permits_are_out_than_there_are():
    limit, same, other = StartLimit("a run", 2), StartLimit("a run", 2), StartLimit("another run", 1)
    first, second = limit.acquire(), same.acquire()
    assert first is not None
    assert second is not None
    assert limit.acquire() is None
    foreign = other.acquire()
    assert foreign is not None
    first.give_back()
    first.give_back()
    third = same.acquire()
    assert third is not None
    assert limit.acquire() is None
    for permit in (second, third, foreign):
        permit.give_back()


def test_without_a_limit_there_is_always_one():
    limit = StartLimit("a run", 0)
    assert all(limit.acquire() is not None for _ in range(100))


def test_a_permit_dies_with_its_holder():
    code = (
        "import time; from minestudio_jax.rollout.start_limit import StartLimit; "
        "permit = StartLimit('killed', 1).acquire(); print(permit is not None, flush=True); time.sleep(600)"
    )
    limit = StartLimit("killed", 1)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            assert limit.acquire() is None
        finally:
            holder.kill()
    assert wait_until(lambda: (permit := limit.acquire()) is not None and permit.give_back() is None, 5.0)


def test_two_workers_together_start_no_more_at_once_than_the_limit(make_pool, tmp_path):
    """D-48: no sleeps by chance, and one construction for each life; a start ends with the first observation."""

    def work(worker):
        place = {"worker_id": worker, "first_index": 3 * worker, "diary": str(tmp_path / "diary")}
        pool = make_pool(num_envs=3, start_limit=StartLimit("s", 2), start_s=0.2, **place)
        receive_all(pool)
        return pool.counters.starts

    with concurrent.futures.ThreadPoolExecutor(2) as workers:
        assert sum(workers.map(work, range(2))) == 6
    entries = [(what, index) for what, index, _ in diary_of(tmp_path)]
    assert sorted(index for what, index in entries if what == "begin") == list(range(6))
    under_way, most = 0, 0
    for what, _ in entries:
        under_way += {"begin": 1, "ready": -1}[what]
        most = max(most, under_way)
    assert most == 2


def test_an_environment_that_fails_to_start_gives_its_permit_back(make_pool, tmp_path):
    limit = StartLimit("failing", 1)
    pool = make_pool(num_envs=2, start_limit=limit, fault="crash", fault_in="start", fault_once=str(tmp_path / "once"))
    receive_all(pool)
    assert pool.counters.failures["start"] == 1
    permit = limit.acquire()
    assert permit is not None
    permit.give_back()
