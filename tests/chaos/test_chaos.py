"""While training runs, everything that can die dies: it never stops, and what it learns from is what happened.

One run with eight environments in two workers, whose logger takes five seconds a record, goes through all of it. The
program checks every fragment before it trains on it (`verified_train`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.settings import SHORT
from tests.rollout.processes import is_alive, wait_until
from tests.run.programs import Program, assert_counters_never_go_back, metrics, wait_for_iteration

pytestmark = pytest.mark.timeout(200)

# Steps so long that the environments are what the run waits for, on a busy machine, too.
ENVS, STEP_S = 8, 0.2
RECOVERY_S = 20.0  # in which the run has gone on, and is as fast as before, whatever happened
AS_FAST, MEASURED_S = 0.9, 4.0  # share of the environment steps a second before any harm, over so many seconds


class Chaos:
    """The run, and the means to do it harm."""

    def __init__(self, folder: Path) -> None:
        self.run_dir, self._faults = folder / "run", folder / "faults"
        self._faults.mkdir()
        self.program = Program(
            "tests.chaos.verified_train",
            f"--run.dir={self.run_dir}",
            f'--env.options={{"step_s": {STEP_S}, "fault_dir": "{self._faults}"}}',
            *SHORT,
            "--rollout.fragment_length=4",
            "--trainer.context_length=4",
            "--rollout.num_rollout_workers=2",
            "--rollout.num_envs=4",
            "--rollout.inference_batch_size=4",
            "--rollout.report_deadline_s=4",
            "--logger.sinks=tests.chaos.slow_sink:make",
        )
        self._records: list[dict[str, Any]] = []
        self._read_to = 0
        wait_for_iteration(self.program, self.run_dir, 3)
        assert wait_until(lambda: self.steps_per_s(3) > 0, RECOVERY_S)
        self._unharmed = self.steps_per_s(3)

    def records(self) -> list[dict[str, Any]]:
        """The metrics so far; reads only what is new, as it is asked for all the time."""
        with (self.run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(self._read_to)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._read_to += sum(map(len, whole))
        self._records += map(json.loads, whole)
        return self._records

    @property
    def iteration(self) -> int:
        return int(self.records()[-1]["iteration"])

    def steps_per_s(self, after: int) -> float:
        """Environment steps a second over the last MEASURED_S at least; 0 until there are so many after an iteration."""
        last = self.records()[-1]
        window = [
            record for record in self._records[after:] if last["wall_time_s"] - record["wall_time_s"] >= MEASURED_S
        ]
        if not window:
            return 0.0
        first = window[-1]
        return (last["env_steps"] - first["env_steps"]) / (last["wall_time_s"] - first["wall_time_s"])

    def processes(self, words: str) -> list[int]:
        """Those of the run whose command line has the words."""
        return sorted(pid for pid, command in self.program.alive().items() if words in command)

    def environments(self) -> list[int]:
        """One process each: the leaders of their groups."""
        return [pid for pid in self.processes("envs/host.py") if os.getpgid(pid) == pid]

    def fault(self, index: int, what: str) -> None:
        """Lets environment `index` do something wrong in its next step."""
        partial = self._faults / f"{index}.partial"
        partial.write_text(what)
        partial.rename(self._faults / str(index))

    def faults_left(self) -> int:
        return len(list(self._faults.iterdir()))

    def versions_in_memory(self) -> set[str]:
        """Folders of the run's policy versions."""
        pids = [str(pid) for pid in self.program.alive()]
        return {
            name for name in os.listdir("/dev/shm") if name.startswith("minestudio_jax-") and name.split("-")[1] in pids
        }

    def total(self, name: str) -> float:
        """Sum over the iterations of a metric that counts since the last one."""
        return sum(record.get(name) or 0 for record in self.records())

    def goes_on(self, iterations: int = 10) -> bool:
        target = self.iteration + iterations
        return self._comes_to(lambda: self.iteration >= target)

    def is_as_fast_as_before(self) -> bool:
        """From now on; in time."""
        begin = self.iteration
        return self._comes_to(lambda: self.steps_per_s(begin) >= AS_FAST * self._unharmed)

    def _comes_to(self, condition: Callable[[], bool]) -> bool:
        ended = self.program.process.poll
        return wait_until(lambda: ended() is not None or condition(), RECOVERY_S) and ended() is None


@pytest.fixture(scope="module")
def chaos(tmp_path_factory) -> Iterator[Chaos]:
    run = Chaos(tmp_path_factory.mktemp("chaos"))
    yield run
    run.program.end()


def test_environments_that_are_killed_are_started_again(chaos):
    """D-37."""
    victims = chaos.environments()
    assert len(victims) == ENVS
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    assert chaos.goes_on()
    assert wait_until(lambda: len(chaos.environments()) == ENVS, RECOVERY_S)
    assert chaos.is_as_fast_as_before()
    assert not set(chaos.environments()) & set(victims)
    assert chaos.total("rollout/env_failures/death") >= ENVS


def test_environments_that_hang_are_found_out(chaos):
    """D-37: stopped processes, which cannot even be asked to end."""
    victims = chaos.environments()
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
    assert wait_until(lambda: not any(map(is_alive, victims)), RECOVERY_S)
    assert chaos.goes_on()
    assert wait_until(lambda: len(chaos.environments()) == ENVS, RECOVERY_S)
    assert chaos.is_as_fast_as_before()
    assert chaos.total("rollout/env_failures/hang") >= ENVS


@pytest.mark.parametrize(
    ("what", "cause"),
    [("nan", "garbage"), ("shape", "garbage"), ("exception", "exception"), ("error", "error_info"), ("exit", "death")],
)
def test_steps_that_are_none_cost_only_themselves(chaos, what, cause):
    """D-13."""
    before = chaos.total(f"rollout/env_failures/{cause}")
    for index in (1, 6):
        chaos.fault(index, what)
    assert wait_until(lambda: chaos.faults_left() == 0, RECOVERY_S), "the environments have not come to it"
    assert chaos.goes_on(5)
    assert wait_until(lambda: chaos.total(f"rollout/env_failures/{cause}") >= before + 2, RECOVERY_S)


def test_a_rollout_worker_that_is_killed_is_replaced_with_its_environments(chaos):
    """D-39."""
    victim = chaos.processes("ray::RolloutActor")[0]
    its_environments = [pid for pid in chaos.environments() if _parent(pid) == victim]
    assert its_environments
    os.kill(victim, signal.SIGKILL)
    assert chaos.goes_on()
    assert wait_until(lambda: not any(map(is_alive, its_environments)), RECOVERY_S), "orphans"
    assert wait_until(lambda: len(chaos.environments()) == ENVS, 2 * RECOVERY_S)
    assert chaos.is_as_fast_as_before()
    assert chaos.records()[-1]["rollout/worker_restarts"] == 1
    log = (chaos.run_dir / "logs" / "run.log").read_text()
    assert re.search(r"rollout worker [01] died and is started again", log)
    assert_counters_never_go_back(chaos.records())


def test_a_rollout_worker_that_hangs_is_replaced(chaos):
    (victim, *_) = chaos.processes("ray::RolloutActor")
    os.kill(victim, signal.SIGSTOP)
    assert chaos.goes_on()
    assert wait_until(lambda: not is_alive(victim), 2 * RECOVERY_S)
    assert wait_until(lambda: chaos.records()[-1]["rollout/worker_restarts"] == 2, RECOVERY_S)
    assert wait_until(lambda: len(chaos.environments()) == ENVS, 2 * RECOVERY_S)
    assert chaos.is_as_fast_as_before()


def test_a_replay_buffer_that_is_killed_is_replaced(chaos):
    (victim,) = chaos.processes("ray::ReplayBufferActor")
    os.kill(victim, signal.SIGKILL)
    assert chaos.goes_on()
    assert chaos.processes("ray::ReplayBufferActor") != [victim]
    assert chaos.is_as_fast_as_before()


def test_a_logger_that_sleeps_holds_nothing_up(chaos):
    """D-46: it is done with one record in five seconds."""
    records = chaos.records()
    assert 0 < len((chaos.run_dir / "slow").read_text().splitlines()) < chaos.iteration / 2
    assert [r["iteration"] for r in records] == list(range(1, len(records) + 1)), "the file has every one"


def test_everything_that_was_learnt_from_happened_and_is_accounted_for(chaos):
    lines = (chaos.run_dir / "verified").read_text().splitlines()
    assert [line for line in lines if not line.endswith(" ")] == []
    assert len(lines) >= chaos.iteration
    for record in chaos.records():
        fate = sum(record[f"replay/{kind}_fragments"] for kind in ("trained", "expired", "dropped", "held"))
        assert fate == record["replay/inserted_fragments"]
        assert record["replay/lost_fragments"] <= record["replay/dropped_fragments"]


def test_the_end_is_orderly_and_leaves_nothing(chaos):
    """D-05, D-07, D-67; last of all."""
    before = chaos.versions_in_memory()
    assert before, "the run's policy versions are there"
    chaos.program.process.send_signal(signal.SIGTERM)
    assert chaos.program.wait(60) == 0, chaos.program.stdout + chaos.program.stderr
    chaos.program.assert_nothing_left()
    assert not before & set(os.listdir("/dev/shm"))
    assert not (chaos.run_dir / "published").exists()


def test_a_full_object_store_stops_nothing(tmp_path):
    """The buffer may hold several times what Ray's object store can; Ray moves the rest to the disk."""
    run_dir, faults = tmp_path / "run", tmp_path / "faults"
    faults.mkdir()
    program = Program(
        "tests.chaos.verified_train",
        f"--run.dir={run_dir}",
        f'--env.options={{"step_s": 0.0, "fault_dir": "{faults}", "padding": 100000}}',
        *SHORT,
        "--rollout.num_envs=4",
        "--rollout.inference_batch_size=4",
        "--run.object_store_gib=0.08",
        "--replay.max_chunks=256",
        "--replay.sampling=uniform",
        "--replay.max_reuse=1000",
        "--replay.max_staleness=1000",
        "--replay.when_full=drop_oldest",
    )
    try:
        wait_for_iteration(program, run_dir, 3)
        assert wait_until(lambda: metrics(run_dir)[-1]["replay/held_bytes"] > 2 * 0.08 * 2**30, 90)
        last = metrics(run_dir)[-1]["iteration"]
        assert wait_until(lambda: metrics(run_dir)[-1]["iteration"] > last + 5, RECOVERY_S)
        program.process.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0, program.stdout + program.stderr
        program.assert_nothing_left()
    finally:
        program.end()
    assert all(line.endswith(" ") for line in (run_dir / "verified").read_text().splitlines())


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
