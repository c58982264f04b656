from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from minestudio_jax.envs.host_protocol import StepRequests
from minestudio_jax.rollout.env_worker import (
    EnvLaunch,
    EnvWorker,
    InstanceFailure,
    PermanentEnvironmentFailure,
    child_environment,
)
from minestudio_jax.rollout.instance_log import InstanceLog
from tests.rollout.processes import is_alive, sleeper, wait_until

STEP = StepRequests(["choice"]).pack({"choice": np.array([[3]], np.int32)})[0]


def answer(worker):
    """Waits as a pool does."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker, selectors.EVENT_READ)
        while True:
            if selector.select(max(0.0, worker.deadline - time.monotonic())):
                reply = worker.receive()
                if reply is not None:
                    return reply
            worker.check_deadline(time.monotonic())


@pytest.fixture
def launch(tmp_path):
    """Starts workers and closes them."""
    workers = []

    def start(ready=True, factory="tests.scripted_env:make", index=0, python=None, deadline_s=10.0, settings=None,
              worker_id=0, log_dir=None, log_max_bytes=2**20, **options):  # fmt: skip
        settings = EnvLaunch(
            factory, options=options, python=python, start_deadline_s=20.0, reset_deadline_s=deadline_s,
            step_deadline_s=deadline_s, worker_id=worker_id, **settings or {}
        )  # fmt: skip
        log = InstanceLog(log_dir or tmp_path, worker_id, index, log_max_bytes)
        workers.append(EnvWorker(settings, index, 5, f"test-{os.getpid()}:{len(workers)}", log))
        workers[-1].log = log
        if ready:
            assert answer(workers[-1]) == "start"
            workers[-1].reset(6)
            assert answer(workers[-1]) == "reset"
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def step(worker):
    worker.step(STEP, time.monotonic())
    return answer(worker)


def test_observations_rewards_and_infos_are_the_environments(launch):
    """D-62."""
    worker = launch(index=2, end="truncated")
    assert worker.current["image"][0, 0].tolist() == [2, 0, 0]
    for t in (1, 2):
        outcome = step(worker)
        assert (outcome.reward, outcome.terminated, outcome.truncated) == (200 + t, False, False)
        assert worker.current["image"][0, 0].tolist() == [2, 0, t]
        assert outcome.info == {}
    outcome = step(worker)
    assert (outcome.reward, outcome.terminated, outcome.truncated) == (203, False, True)
    assert {key: outcome.info[key] for key in ("choice", "seed", "reset_seed", "pov")} == {
        "choice": 3, "seed": 5, "reset_seed": 6, "pov": None
    }  # fmt: skip
    assert outcome.info["pid"] == worker.pid == os.getpgid(worker.pid)
    worker.reset(None)
    assert answer(worker) == "reset"
    assert worker.final["image"][0, 0].tolist() == [2, 0, 3]
    assert worker.current["image"][0, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        ("crash", "death", "its process ended with status 7 during step"),
        ("exception", "exception", "step: RuntimeError: the scripted exception"),
        ("garbage", "garbage", "cannot be understood"),
        ("shape", "garbage", r"'image' is uint8 \[5, 5, 3\]"),
        ("nan", "garbage", "the reward is nan"),
        ("huge", "garbage", r"the reward is 1e\+39; .* float32"),
        ("error", "error_info", "java.net.SocketException"),
    ],
)
def test_a_fault_in_a_step_ends_the_process_and_is_told_with_the_log(launch, fault, cause, says):
    worker = launch(fault=fault, fault_step=2)
    step(worker)
    with pytest.raises(InstanceFailure, match=says) as failure:
        step(worker)
    assert failure.value.cause == cause
    assert str(failure.value).startswith("environment 0 of worker 0 failed")
    assert "environment 0 speaks" in str(failure.value)
    assert wait_until(worker.is_reaped)


def test_a_hang_is_killed_at_the_deadline_and_the_log_tells_where_it_hung(launch):
    worker = launch(fault="hang", deadline_s=0.6)
    step(worker)
    begin = time.monotonic()
    with pytest.raises(InstanceFailure, match=r"its step took longer than env\.step_deadline_s=0\.6") as failure:
        step(worker)
    assert 0.6 <= time.monotonic() - begin < 1.5
    assert "in _misbehave" in str(failure.value)
    assert failure.value.cause == "hang"
    assert wait_until(worker.is_reaped)


def test_an_exception_in_reset_and_in_the_factory_is_told(launch):
    for where in ("start", "reset"):
        worker = launch(ready=False, fault="exception", fault_in=where)
        with pytest.raises(InstanceFailure, match=f"{where}: RuntimeError: the scripted exception") as failure:
            assert answer(worker) == "start"
            worker.reset(0)
            answer(worker)
        assert failure.value.cause == {"start": "start", "reset": "exception"}[where]


def test_a_killed_process_is_told_from_a_stopped_one(launch):
    killed, stopped = launch(step_s=0.3), launch(step_s=0.3, deadline_s=0.6, index=1)
    for worker, number in ((killed, signal.SIGKILL), (stopped, signal.SIGSTOP)):
        worker.step(STEP, time.monotonic())
        os.kill(worker.pid, number)
    with pytest.raises(InstanceFailure, match="killed by signal 9"):
        answer(killed)
    with pytest.raises(InstanceFailure, match=r"env\.step_deadline_s"):
        answer(stopped)
    assert wait_until(lambda: killed.is_reaped() and stopped.is_reaped())


@pytest.mark.parametrize("child", ["group", "session"])
def test_what_the_simulator_started_dies_with_it_and_nothing_else(launch, child):
    decoy = sleeper()
    worker, neighbour = (
        launch(child=child, fault="crash", episode_length=1),
        launch(child=child, index=1, episode_length=1),
    )
    (simulator,) = step(worker).info["children"]
    (other,) = step(neighbour).info["children"]
    with pytest.raises(InstanceFailure, match="status 7"):
        step(worker)
    assert wait_until(lambda: not is_alive(simulator))
    assert is_alive(other)
    neighbour.close()
    assert wait_until(lambda: not is_alive(other))
    assert is_alive(decoy.pid)
    decoy.kill()
    decoy.wait()


def test_the_memory_of_all_its_processes_counts(launch):
    light, heavy = launch(child="session"), launch(child="session", ballast_mib=100, ballast_index=1, index=1)
    # Twice as much for the moment in which the child copies it.
    assert wait_until(lambda: 90 * 2**20 < heavy.resident_bytes() - light.resident_bytes() < 130 * 2**20)


def test_processes_run_on_the_cpus_they_are_given_whatever_the_parent_is_pinned_to(launch):
    before = os.sched_getaffinity(0)
    pinned = {min(before)}
    try:
        os.sched_setaffinity(0, pinned)
        free = launch(settings={"cpus": frozenset(before)}, child="group")
        assert os.sched_getaffinity(0) == pinned
        bound = launch(index=1)
    finally:
        os.sched_setaffinity(0, before)
    assert os.sched_getaffinity(free.pid) == before
    assert os.sched_getaffinity(bound.pid) == pinned
    threads = os.listdir(f"/proc/{free.pid}/task")
    assert len(threads) > 1
    assert all(os.sched_getaffinity(int(thread)) == before for thread in threads)


def test_processes_give_way_as_far_as_they_are_told_whatever_they_start(launch):
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    polite, equal = launch(settings={"niceness": 15}, child="group"), launch(index=1)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours
    assert os.getpriority(os.PRIO_PROCESS, equal.pid) == ours
    pids = [polite.pid, *(child.pid for child in psutil.Process(polite.pid).children(recursive=True))]
    assert len(pids) > 1
    threads = [int(thread) for pid in pids for thread in os.listdir(f"/proc/{pid}/task")]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {max(ours, 15)}


def test_an_idle_environment_leaves_no_stack_in_the_log(launch, tmp_path):
    """The alarm for hangs is set for a step, but goes off in none."""
    worker = launch(deadline_s=0.4)
    step(worker)
    time.sleep(0.6)
    assert step(worker).reward == 2
    assert "Timeout" not in (tmp_path / "env-00-000.log").read_text()


def test_the_log_is_bounded_and_the_last_lines_stay(launch, tmp_path):
    worker = launch(worker_id=3, log_max_bytes=4096, chatter=100, episode_length=1000)
    log, older = tmp_path / "env-03-000.log", tmp_path / "env-03-000.log.1"
    for _ in range(5):
        step(worker)
    worker.log.bound()
    assert (log.stat().st_size, older.stat().st_size) == (0, 4096)
    assert older.read_text().endswith("line 99 of step 4\n")
    step(worker)
    assert log.read_text().startswith("line 0 of step 5\n")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(InstanceFailure, match=r"env-03-000\.log:\n(.*\n)*line 99 of step 5"):
        step(worker)
    worker = launch(worker_id=3, log_max_bytes=1024, fault="crash", fault_step=1)
    assert older.stat().st_size == 1024
    with pytest.raises(InstanceFailure) as failure:
        step(worker)
    assert "environment 0 speaks" in str(failure.value)
    assert "of step 5" not in str(failure.value), "only what this life wrote"


def test_a_log_that_was_deleted_takes_nothing_with_it(launch, tmp_path):
    worker = launch(fault="crash", fault_step=2)
    (tmp_path / "env-00-000.log").unlink()
    worker.log.bound()
    step(worker)
    with pytest.raises(InstanceFailure, match=r"status 7.*its log .*env-00-000\.log is empty or gone"):
        step(worker)


def test_a_log_that_cannot_be_moved_grows_and_that_is_said_once(launch, tmp_path, caplog):
    worker = launch(log_max_bytes=10, episode_length=1000)
    (tmp_path / "env-00-000.log.partial").symlink_to("/dev/full")
    size = (tmp_path / "env-00-000.log").stat().st_size
    assert size > 10
    for _ in range(2):
        worker.log.bound()
        step(worker)
    assert (tmp_path / "env-00-000.log").stat().st_size >= size
    (warning,) = caplog.messages
    assert "cannot be kept to 10 bytes" in warning


def test_a_log_that_cannot_be_made_fails_the_start(launch, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InstanceFailure, match=r"environment 0 of worker 0 cannot be started: .*file") as failure:
        launch(log_dir=tmp_path / "file" / "logs")
    assert failure.value.cause == "start"


def test_an_environment_that_nobody_can_build_is_a_permanent_failure(launch):
    with pytest.raises(PermanentEnvironmentFailure, match=r"env\.python='/no/such/python' cannot be run"):
        launch(python="/no/such/python")
    with pytest.raises(PermanentEnvironmentFailure, match=r"env\.options"):
        launch(text="x" * 100_000)
    with pytest.raises(PermanentEnvironmentFailure, match=r"env\.factory='no_such_module:make'"):
        launch(factory="no_such_module:make")


def test_a_closed_worker_leaves_no_descriptor(launch):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    launch().close()
    before = descriptors()
    worker = launch()
    assert descriptors() > before
    worker.close()
    worker.close()
    del worker
    assert descriptors() <= before + 1  # the mapping of an array that is still held keeps one


def test_the_process_dies_in_the_middle_of_a_step_when_its_parent_is_killed(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from tests.rollout.test_env_worker import STEP, EnvLaunch, EnvWorker, InstanceLog, answer\n"
        "launch = EnvLaunch('tests.scripted_env:make', {'fault': 'hang', 'fault_step': 1})\n"
        "worker = EnvWorker(launch, 0, 0, 'orphan:0', InstanceLog(pathlib.Path(sys.argv[1]), 0, 0, 2**20))\n"
        "answer(worker); worker.reset(0); answer(worker); worker.step(STEP, time.monotonic())\n"
        "print(worker.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.1)
        assert is_alive(pid)
        parent.kill()
    assert wait_until(lambda: not is_alive(pid), 5.0)


def test_import_path_holds_the_users_folders_and_not_this_interpreters(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    variables = child_environment("m", foreign=True)
    folders = variables["PYTHONPATH"].split(os.pathsep)
    assert folders[:2] == [os.getcwd(), str(tmp_path)]
    assert not [folder for folder in folders if "site-packages" in folder or "lib-dynload" in folder]
