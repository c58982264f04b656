"""Runs on several hosts: real processes, ended in every way a host can end."""

from __future__ import annotations

import os
import re
import signal

import pytest

from minestudio_jax.utils.policy_store import list_versions, version_path
from tests.launch.scripts import LAUNCH, tools_on_path
from tests.rollout.processes import free_port, wait_until
from tests.run.programs import (
    TINY,
    Program,
    assert_counters_never_go_back,
    checkpoints,
    metrics,
    train,
    wait_for_iteration,
)

pytestmark = pytest.mark.timeout(600)

WAIT_S = 240.0
# A run that goes on in one process has nothing to do with several hosts but what these have left in its directory.
WITHOUT_RAY = ("--rollout.mode=serial",)


def start_hosts(run_dir, *arguments, devices=2, of_each=((), ())):
    """The same command on two hosts, with two devices each unless said otherwise."""
    coordinator = f"--trainer.coordinator=127.0.0.1:{free_port()}"
    return [
        train(
            run_dir, "--trainer.launcher=external", "--trainer.num_hosts=2", f"--trainer.host_index={index}",
            f"--trainer.cpu_devices={devices}", coordinator, *arguments, *own,
        )
        for index, own in enumerate(of_each)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def going():
    """Programs whose Ray may take its time to go; when all tests are done, nothing is left of them."""
    programs = []
    yield programs
    for program in programs:
        # A private Ray goes with the first host, but its agents take a minute to believe it.
        program.assert_nothing_left(120.0)


@pytest.fixture
def programs(going):
    """Those that are started, of which nothing is left behind if the test fails."""
    started = []
    yield started
    for program in set(started) - set(going):
        for pid in program.alive():
            os.kill(pid, signal.SIGKILL)
        if program.process.poll() is None:
            program.wait()


@pytest.fixture
def hosts(programs):
    """Starts hosts."""

    def start(*args, **kwargs):
        programs.extend(started := start_hosts(*args, **kwargs))
        return started

    return start


def assert_one_process_continues(programs, run_dir, *arguments):
    """It takes up the counters of the last checkpoint, and what was learnt."""
    saved = next(r for r in metrics(run_dir) if r["iteration"] == checkpoints(run_dir)[-1])
    alone = train(run_dir, "--trainer.cpu_devices=2", *arguments)
    programs.append(alone)
    wait_for_iteration(alone, run_dir, saved["iteration"] + 2, WAIT_S)
    os.kill(alone.process.pid, signal.SIGTERM)
    assert alone.wait(WAIT_S) == 0, alone.stderr
    assert f"continuing after iteration {saved['iteration']}, {saved['env_steps']:,} env steps" in alone.stdout
    records = metrics(run_dir)
    assert_counters_never_go_back(records)
    assert [r["iteration"] for r in records] == list(range(1, len(records) + 1))
    following = records[saved["iteration"]]
    assert following["trained_steps"] == saved["trained_steps"] + 2 * 2 * 2 * 8
    assert following["loss/entropy"] == pytest.approx(saved["loss/entropy"], abs=0.1)
    assert abs(following["loss/total"] - saved["loss/total"]) < 1.0


def test_a_signal_to_any_host_saves_and_ends_all_and_one_host_continues(programs, tmp_path):
    """D-39, D-40, with local_multihost.sh and the Ray that it starts; each host has half of the parameters."""
    run_dir, split = tmp_path / "run", ("--trainer.mesh=fsdp:-1", "--policy.hidden_size=64")
    both = Program(
        str(LAUNCH / "local_multihost.sh"), "--hosts=2", "--devices=2", "--", f"--run.dir={run_dir}", *TINY,
        "--trainer.save_interval=100000", *split, environment=tools_on_path(),
    )  # fmt: skip
    programs.append(both)
    wait_for_iteration(both, run_dir, 3, WAIT_S)
    # Workers hear of what both hosts have written: the first version, 1, is no longer the one they act with.
    assert wait_until(lambda: any(r["lag/policy_versions_min"] < r["iteration"] - 1 for r in metrics(run_dir)), WAIT_S)
    (second,) = [pid for pid, command in both.alive().items() if "--trainer.host_index=1" in command]
    os.kill(second, signal.SIGTERM)
    assert both.wait(WAIT_S) == 0, both.stdout + both.stderr
    both.assert_nothing_left()
    assert re.search(r"\[host 0\] .*stopping after SIGTERM at host 1", both.stdout)
    saved = metrics(run_dir)[-1]
    assert checkpoints(run_dir) == [saved["iteration"]]
    assert saved["trained_steps"] == saved["iteration"] * 2 * 2 * 4 * 8
    newest = version_path(run_dir / "versions", list_versions(run_dir / "versions")[-1])
    assert len(list(newest.glob("ocdbt.process_*"))) == 2

    assert_one_process_continues(programs, run_dir, *split)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_host_dies_the_other_says_so_and_ends_and_one_host_continues(hosts, programs, going, tmp_path, victim):
    """D-39: at once, and not after the minutes that a collective operation may take."""
    run_dir = tmp_path / "run"
    both = hosts(run_dir)
    wait_for_iteration(both[0], run_dir, 3, WAIT_S)
    assert wait_until(lambda: checkpoints(run_dir), WAIT_S)  # it is written beside the iterations
    os.kill(both[victim].process.pid, signal.SIGKILL)
    other = both[1 - victim]
    assert other.wait(60.0) == 1, other.stdout + other.stderr
    assert f"host {victim} (" in other.stdout + other.stderr
    assert "is gone" in other.stdout + other.stderr
    both[victim].wait()
    other.assert_nothing_left()
    log = run_dir / "logs" / ("run.log" if victim else "host-1.log")
    assert "is gone" in log.read_text()
    assert checkpoints(run_dir)[-1] >= 2
    going.append(both[victim])
    if victim:
        assert_one_process_continues(programs, run_dir, *WITHOUT_RAY)


def test_hosts_that_do_not_agree_are_refused_before_anything_starts(hosts, tmp_path):
    programs = hosts(tmp_path / "run", of_each=((), ("--trainer.learning_rate=0.5",)))
    for program in programs:
        assert program.wait(WAIT_S) == 2, program.stdout + program.stderr
        said = program.stdout + program.stderr
        assert "the setting trainer.learning_rate is 0.0003 on the first host and 0.5 on host 1" in said
    assert not (tmp_path / "run").exists()


def test_hosts_that_collect_on_their_devices_continue_what_one_began_and_one_continues_what_they_did(
    hosts, programs, tmp_path
):
    """D-40: with twice the devices, whose worlds begin anew, and with half as many."""
    run_dir, device = tmp_path / "run", ("--rollout.mode=device", "--rollout.num_cpus_per_worker=1")

    def end(*those):
        for program in those:
            assert program.wait(WAIT_S) == 0, program.stdout + program.stderr
            program.assert_nothing_left()

    def alone(*arguments):
        programs.append(program := train(run_dir, *device, "--trainer.cpu_devices=1", *arguments))
        end(program)
        return program.stdout

    alone("--trainer.num_iterations=2")
    assert metrics(run_dir)[-1]["env_steps"] == 2 * 4 * 8
    end(*hosts(run_dir, *device, "--trainer.num_iterations=6", devices=1))
    for log in ("run.log", "host-1.log"):
        assert "worlds begin anew, as the checkpoint of iteration 2 " in (run_dir / "logs" / log).read_text()
    records = metrics(run_dir)
    assert records[-1]["env_steps"] == (2 + 4 * 2) * 4 * 8
    assert records[-1]["episode/count"] >= 0
    assert checkpoints(run_dir) == [2, 4, 6]
    assert "worlds begin anew, as the checkpoint of iteration 6 " in alone("--trainer.num_iterations=7")
    records = metrics(run_dir)
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5, 6, 7]
    assert_counters_never_go_back(records)
    assert records[-1]["env_steps"] == (3 + 4 * 2) * 4 * 8


def test_ray_starts_the_hosts_and_a_signal_to_the_command_ends_all(programs, tmp_path):
    run_dir = tmp_path / "run"
    program = train(
        run_dir, "--trainer.launcher=ray", "--trainer.num_hosts=2", "--trainer.cpu_devices=2",
        '--rollout.resources={"minecraft": 4}',
    )  # fmt: skip
    programs.append(program)
    wait_for_iteration(program, run_dir, 3, WAIT_S)
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.wait(WAIT_S) == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    last = metrics(run_dir)[-1]
    assert checkpoints(run_dir)[-1] == last["iteration"]
    assert last["trained_steps"] == last["iteration"] * 2 * 2 * 4 * 8
