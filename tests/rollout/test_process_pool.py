from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout import instance_log, process_pool
from minestudio_jax.rollout.env_pool import PoolCounters, ToldToStop
from tests.rollout.pools import act, act_on, play, receive_all, received
from tests.rollout.processes import PATIENCE, is_alive, shared_memory, sleeper, wait_until


def test_every_environment_is_given_its_task(make_pool):
    pool = make_pool(num_envs=3, tasks=["dig", "dig", "swim"], episode_length=1)
    told = {}
    while len(told) < 3:
        steps = pool.recv(10.0)
        told |= {int(i): info["task"] for i, info in zip(steps.env_id, steps.info, strict=True) if "task" in info}
        act(pool, steps)
    assert told == {0: "dig", 1: "dig", 2: "swim"}


def test_an_environment_that_asks_is_told_whose_actions_it_is_given(make_pool):
    """D-50: what it records can name the policy. Its episodes are of two steps, the second by version 7 or by nobody's."""
    pool, told = make_pool(num_envs=1, episode_length=2), []
    choice = {"choice": np.zeros((1, 1), np.int32)}
    for version in (5, 7, 7, None):
        steps = pool.recv(10.0)
        told += [info["policy_version"] for info in steps.info if info]
        pool.send(choice, steps.env_id, *([] if version is None else [version]))
    steps = pool.recv(10.0)
    assert [*told, steps.info[0]["policy_version"]] == [7, 0]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_order_rewards_and_episode_ends_are_genuine(make_pool, end):
    pool = make_pool(num_envs=2, end=end, first_index=10)
    got = play(pool, 8, 8)
    for i in (0, 1):
        n = i + 10
        final = [[n, episode, 3] if end == "truncated" else None for episode in (0, 1)]
        assert got[i][:8] == [
            ([n, 0, 0], 0, {"first"}, None),
            ([n, 0, 1], 100 * n + 1, set(), None),
            ([n, 0, 2], 100 * n + 2, set(), None),
            ([n, 1, 0], 100 * n + 3, {"first", end}, final[0]),
            ([n, 1, 1], 100 * n + 11, set(), None),
            ([n, 1, 2], 100 * n + 12, set(), None),
            ([n, 2, 0], 100 * n + 13, {"first", end}, final[1]),
            ([n, 2, 1], 100 * n + 21, set(), None),
        ]
    assert pool.counters == PoolCounters(starts=2)


def test_a_slow_environment_delays_no_other(make_pool):
    """Environment 0 hangs in its first step for ten seconds; the other takes a hundred meanwhile."""
    pool = make_pool(num_envs=2, fault="hang", fault_step=1, episode_length=1000)
    begin = time.monotonic()
    got = play(pool, 1, 100)
    assert len(got[0]) == 1
    assert time.monotonic() - begin < 9.0
    assert pool.counters.total_failures == 0


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("hang", "hang"),
        ("crash", "death"),
        ("exception", "exception"),
        ("shape", "garbage"),
        ("garbage", "garbage"),
        ("error", "error_info"),
    ],
)
def test_a_failed_step_is_reported_as_such_while_the_others_go_on(make_pool, tmp_path, fault, cause):
    pool = make_pool(
        num_envs=2,
        step_s=0.01,
        episode_length=1000,
        fault=fault,
        fault_once=str(tmp_path / "once"),
        step_deadline_s=1.0,
    )
    got = play(pool, 4, 20)
    assert got[0][:4] == [
        ([0, 0, 0], 0, {"first"}, None),
        ([0, 0, 1], 1, set(), None),
        ([0, 0, 0], 0, {"first", "failed"}, None),  # step 2 is lost
        ([0, 0, 1], 1, set(), None),
    ]
    assert [row[0][2] for row in got[1]] == list(range(len(got[1])))
    assert pool.counters == PoolCounters(starts=3, failures={**PoolCounters().failures, cause: 1})


def test_a_failure_in_the_reset_leaves_the_finished_step_valid(make_pool, tmp_path):
    """D-14."""
    pool = make_pool(
        end="truncated", fault="crash", fault_in="reset", fault_episode=1, fault_once=str(tmp_path / "once")
    )
    assert play(pool, 5)[0][3:] == [
        ([0, 0, 0], 3, {"first", "truncated"}, [0, 0, 3]),
        ([0, 0, 1], 1, set(), None),
    ]
    assert pool.counters.total_failures == 1


def test_a_failure_before_the_first_receipt_is_no_failed_action(make_pool, tmp_path):
    for where in ("start", "reset"):
        pool = make_pool(fault="crash", fault_in=where, fault_once=str(tmp_path / where))
        assert play(pool, 1)[0] == [([0, 0, 0], 0.0, {"first"}, None)]
        cause = {"start": "start", "reset": "death"}[where]
        assert pool.counters == PoolCounters(starts=2, failures={**PoolCounters().failures, cause: 1})


def pid_of(pool, env_id):
    return pool.pids()[env_id]


def test_killed_and_stopped_environments_come_back(make_pool):
    pool = make_pool(num_envs=3, step_s=0.1, episode_length=1000, step_deadline_s=1.0)
    got = play(pool, 1, 1, 1)
    pids = pool.pids()
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGSTOP)
    while not all(any("failed" in flags for _, _, flags, _ in got[i]) for i in (0, 1)):
        play(pool, 0, 0, 1, got=got)
    assert pool.counters.failures == {**PoolCounters().failures, "death": 1, "hang": 1}
    assert not any("failed" in flags for _, _, flags, _ in got[2])
    assert not is_alive(pids[0])
    assert not is_alive(pids[1])


@pytest.mark.parametrize("received_before", [True, False])
def test_an_environment_that_dies_while_nothing_is_asked_fails_in_its_next_action(make_pool, received_before):
    """What it has answered before is still delivered, observation and all."""
    pool = make_pool(step_s=0.1)
    play(pool, 1)
    if received_before:
        steps = pool.recv(5.0)
    else:
        time.sleep(0.3)  # the answer is there, but nobody has read it yet
    pid = pid_of(pool, 0)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid))
    if received_before:
        begin = time.process_time()
        assert pool.recv(0.3) is None
        assert time.process_time() - begin < 0.1, "a dead environment is no reason to spin"
    else:
        steps = pool.recv(5.0)
    assert list(received(steps)) == [(0, ([0, 0, 1], 1.0, set(), None))]
    act(pool, steps)
    assert play(pool, 1)[0] == [([0, 0, 0], 0.0, {"first", "failed"}, None)]
    assert pool.counters.failures["death"] == 1


def test_what_was_received_stays_as_it_is_until_the_next_action(make_pool):
    """Not copied, and not overwritten: neither by the other environments nor by the reset."""
    pool = make_pool(num_envs=2, end="truncated", episode_length=2)
    for _ in range(3):
        kept = receive_all(pool)
        if kept[0][1] is None:
            act_on(pool, 0, 1)
    for i, (obs, final) in kept.items():
        assert obs["image"].base is not None
        assert (obs["image"] == (i, 1, 0)).all()
        assert (final["image"] == (i, 0, 2)).all()
    act_on(pool, 0)
    assert pool.recv(5.0).env_id.tolist() == [0]
    assert (kept[0][0]["image"] == (0, 1, 1)).all(), "the same memory, written again"
    assert (kept[1][0]["image"] == (1, 1, 0)).all()


def test_the_longest_waiting_are_received_first_and_no_more_than_asked_for(make_pool):
    """With environments that are always ready everybody has a turn as often as the others; ties are broken anyhow."""
    pool = make_pool(num_envs=5, episode_length=1000)
    receive_all(pool)
    act_on(pool, 0, 1, 2, 3, 4)
    turns = []
    for _ in range(10):
        time.sleep(0.1)  # all that were sent an action are ready
        ids = pool.recv(5.0, batch_sizes=(2,)).env_id.tolist()
        assert len(ids) == 2
        turns += ids
        act_on(pool, *ids)
    assert sorted(turns[:5]) == list(range(5))
    assert all(abs(turns.count(i) - 4) <= 1 for i in range(5)), turns
    assert all(i in turns[begin : begin + 7] for i in range(5) for begin in range(13)), turns


def test_a_short_wait_fills_the_batch_and_nothing_else_is_waited_for(make_pool):
    """D-47."""
    pool = make_pool(num_envs=3, episode_length=1000, step_s=0.2)
    receive_all(pool)
    act_on(pool, 0)
    time.sleep(0.1)
    act_on(pool, 1)
    begin = time.monotonic()
    assert sorted(pool.recv(5.0, max_wait_s=2.0).env_id.tolist()) == [0, 1], (
        "the second comes a tenth of a second later"
    )
    assert time.monotonic() - begin < 0.6, "the third is with the caller: there is nothing to wait for"
    act_on(pool, 0)
    time.sleep(0.1)
    act_on(pool, 1, 2)
    assert pool.recv(5.0, batch_sizes=(1,), max_wait_s=2.0).env_id.tolist() == [0]
    assert sorted(pool.recv(5.0, max_wait_s=2.0).env_id.tolist()) == [1, 2]
    act_on(pool, 0)
    time.sleep(0.1)
    act_on(pool, 1)
    assert pool.recv(5.0, max_wait_s=0.01).env_id.tolist() == [0], "not for longer than said"


def test_an_environment_that_hangs_is_not_waited_for_again_and_again(make_pool):
    pool = make_pool(num_envs=2, fault="hang", fault_step=1, episode_length=1000)
    play(pool, 1, 1)
    begin = time.monotonic()
    for _ in range(20):
        steps = pool.recv(5.0, max_wait_s=0.2)
        assert steps.env_id.tolist() == [1]
        act(pool, steps)
    assert time.monotonic() - begin < 1.5, "half a second in all, not a fifth for every batch"


def test_an_answer_in_time_counts_however_late_it_is_received(make_pool):
    pool = make_pool(step_deadline_s=1.0)
    play(pool, 1)
    time.sleep(1.5)
    (_, _, flags, _) = play(pool, 1)[0][0]
    assert flags == set()
    assert pool.counters.total_failures == 0


def test_too_many_failures_end_the_run_with_the_log_and_the_remedy(make_pool):
    pool = make_pool(fault="exception", max_failures_per_hour=1)
    with pytest.raises(EnvironmentFailure, match=r"env\.max_failures_per_hour=1") as failure:
        play(pool, 100)
    assert "the scripted exception" in str(failure.value)
    assert "environment 0 speaks" in str(failure.value)


def test_environments_that_wait_to_be_received_count_as_ready(make_pool, monkeypatch):
    """A worker without a policy attends to its environments and receives none of them."""
    monkeypatch.setattr(process_pool, "_FIRST_BACKOFF_S", 0.01)
    pool = make_pool(num_envs=2, fault="exception", fault_in="reset", fault_index=1, max_failures_per_hour=7)
    with pytest.raises(EnvironmentFailure, match=r"8 environment failures .*env\.max_failures_per_hour=7"):
        while True:
            pool.attend()
            time.sleep(0.01)


def test_environments_that_cannot_work_are_refused_at_once(make_pool):
    with pytest.raises(EnvironmentFailure, match="got ready in 3 attempts") as failure:
        make_pool(fault="crash", fault_in="start")
    assert "status 7" in str(failure.value)
    with pytest.raises(EnvironmentFailure, match=r"env\.factory='no_such_module:make'"):
        make_pool(factory="no_such_module:make")
    with pytest.raises(EnvironmentFailure, match="environments of one spec"):
        play(make_pool(num_envs=2, factory="tests.scripted_env:make_of_different_sizes"), 1, 1)


def test_an_environment_that_played_once_is_not_given_up_for_what_its_restart_says(make_pool, tmp_path):
    """D-39: a machine out of memory or with an overloaded display says what a wrong setting would."""
    once = tmp_path / "once"
    once.touch()
    pool = make_pool(num_envs=2, fault="misconfigured", fault_in="start", fault_once=str(once), step_s=0.01)
    got = play(pool, 1, 1)
    once.unlink()
    os.kill(pid_of(pool, 0), signal.SIGKILL)
    while not any("failed" in flags for _, _, flags, _ in got[0]):
        play(pool, 0, 1, got=got)
    assert pool.counters.failures == {**PoolCounters().failures, "death": 1, "start": 1}


def test_a_start_is_given_up_at_once_when_told_so(make_pool):
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(ToldToStop):
        make_pool(num_envs=2, start_s=60.0, stop=stop)
    assert time.monotonic() - begin < PATIENCE * 4.0, "two seconds of them to close in good order"


def test_a_log_is_bounded_while_an_episode_lasts(make_pool, monkeypatch, tmp_path):
    monkeypatch.setattr(instance_log, "_LOOK_S", 0.05)
    pool = make_pool(chatter=50, episode_length=10**6, log_max_bytes=4096, step_s=0.001)
    log, older = tmp_path / "env-00-000.log", tmp_path / "env-00-000.log.1"
    begin, written = time.monotonic(), 0
    while written < 20 * 4096:
        play(pool, 1)
        written += 50 * len("line 10 of step 100\n")
        assert log.stat().st_size < 10 * 4096
        assert time.monotonic() - begin < PATIENCE * 30.0
    assert older.stat().st_size == 4096
    assert pool.counters == PoolCounters(starts=1)


def test_seeds_differ_between_environments_and_lives_and_are_reproducible(make_pool, tmp_path):
    def seeds(name):
        fault = {"fault": "crash", "fault_step": 1, "fault_episode": 1, "fault_once": str(tmp_path / name)}
        pool = make_pool(num_envs=2, seed=3, episode_length=1, **fault)
        found = {0: [], 1: []}
        while len(found[0]) < 2 or len(found[1]) < 1:
            steps = pool.recv(5.0)
            for i, info in zip(steps.env_id, steps.info, strict=True):
                pair = (info["seed"], info["reset_seed"]) if info else None
                if pair and pair not in found[i]:
                    found[i].append(pair)
            act(pool, steps)
        return found

    first = seeds("a")
    assert first == seeds("b")
    assert len({number for pairs in first.values() for pair in pairs for number in pair}) == 6


def test_only_received_environments_can_be_sent(make_pool):
    pool = make_pool()
    with pytest.raises(ValueError, match="receive it before"):
        pool.send({"choice": np.zeros((1, 1), np.int32)}, np.array([0], np.int32))
    pool.recv(5.0)
    with pytest.raises(ValueError, match="the spec"):
        pool.send({"camera": np.zeros((1, 1), np.int32)}, np.array([0], np.int32))
    with pytest.raises(ValueError, match="one for each"):
        pool.send({"choice": np.zeros((2, 1), np.int32)}, np.array([0, 0], np.int32))
    with pytest.raises(ValueError, match="one for each"):
        pool.send({"choice": np.zeros((2, 1), np.int32)}, np.array([0], np.int32))


def test_close_lets_environments_end_in_good_order_and_kills_what_does_not(make_pool, tmp_path):
    decoy = sleeper()
    pool = make_pool(num_envs=2, fault="hang", fault_step=1, fault_index=1, child="session")
    play(pool, 1, 1)
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() - begin < 4.0
    assert "closed in good order" in (tmp_path / "env-00-000.log").read_text()
    assert "closed in good order" not in (tmp_path / "env-00-001.log").read_text()
    assert is_alive(decoy.pid)
    decoy.kill()
    decoy.wait()


@pytest.mark.parametrize("children_first", [False, True], ids=["by-the-system", "as-Ray-does"])
def test_nothing_survives_the_sigkill_of_the_parent(tmp_path, children_first):
    """D-37. When Ray kills an actor it kills the children of its process before, and theirs not."""
    code = (
        "import json, os, pathlib, signal, sys, time\n"
        "from minestudio_jax.rollout.env_worker import EnvLaunch\n"
        "from minestudio_jax.rollout.instance_log import InstanceLog\n"
        "from minestudio_jax.rollout.process_pool import ProcessEnvPool\n"
        "from tests.rollout.pools import play\n"
        "from tests.rollout.processes import children, marked_pids\n"
        "options = {'child': 'session', 'fault': 'hang'}\n"
        "launch = EnvLaunch('tests.scripted_env:make', options, None, 20, 20, 20)\n"
        "logs = [InstanceLog(pathlib.Path(sys.argv[1]), 0, env_id, 2**20) for env_id in range(3)]\n"
        "pool = ProcessEnvPool(launch, logs, 0, max_failures_per_hour=0)\n"
        "play(pool, 2, 2, 2)\n"
        "os.kill(pool.pids()[1], signal.SIGSTOP)\n"
        "guard = {int(pid) for pid in os.listdir('/proc') if pid.isdecimal() and pool.marker.encode() in\n"
        "         pathlib.Path('/proc', pid, 'cmdline').read_bytes()}\n"
        "print(json.dumps(sorted(marked_pids(pool.marker) | children() | guard)), flush=True); time.sleep(600)"
    )
    decoy, memory = sleeper(), shared_memory()
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        pids = json.loads(parent.stdout.readline())
        assert len(pids) == 7  # three environments, what each started, and the guard
        assert all(map(is_alive, pids))
        for child in psutil.Process(parent.pid).children() if children_first else ():
            child.kill()
        parent.kill()
    assert wait_until(lambda: not any(map(is_alive, pids)), 5.0)
    assert shared_memory() == memory
    assert is_alive(decoy.pid)
    decoy.kill()
    decoy.wait()
