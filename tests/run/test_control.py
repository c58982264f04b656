"""The control program and the desk in the run that answers it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest

from minestudio_jax.config import Config
from minestudio_jax.control import main
from minestudio_jax.run import control_desk, control_files
from minestudio_jax.run.control_desk import ControlDesk
from minestudio_jax.run.stop_signal import StopSignal
from tests.rollout.processes import wait_until
from tests.run.programs import Program, metrics, train, wait_for_iteration


def control(run_dir, *arguments, deadline_s=60):
    """Exit code and output of the program's function."""
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = main(["control", f"--run.dir={run_dir}", f"--deadline_s={deadline_s}", *arguments])
    return code, said.getvalue()


def states(run_dir):
    return [w["state"] for w in control_files.read_status(run_dir)["rollout"]["workers"]]


def workers(program):
    return [pid for pid, command in program.alive().items() if "RolloutActor" in command]


def test_a_living_run_is_watched_enlarged_shrunk_and_stopped(tmp_path):
    run_dir = tmp_path / "run"
    program = train(
        run_dir, "--rollout.num_cpus_per_worker=0.5", "--trainer.save_interval=100000", "--replay.max_staleness=1"
    )
    wait_for_iteration(program, run_dir, 1)
    asking = Program("control", f"--run.dir={run_dir}", "--status")
    assert asking.wait(60) == 0, asking.stderr
    said = asking.stdout
    for words in (
        f"running, process {program.process.pid} on ",
        "policy version",
        "worker 0: acting",
        "(0 of them lost)",
    ):
        assert words in said, said

    code, said = control(run_dir, "--num_rollout_workers=2")
    assert (code, "1 rollout workers are started besides the 1" in said) == (0, True), said
    assert wait_until(lambda: states(run_dir) == ["acting"] * 2, 90), control_files.read_status(run_dir)
    assert len(workers(program)) == 2
    # It has played: the run goes on with both.
    reached = metrics(run_dir)[-1]["iteration"]
    wait_for_iteration(program, run_dir, reached + 4)

    code, said = control(run_dir, "--num_rollout_workers=1")
    assert (code, "1 of 2 rollout workers are drained" in said) == (0, True), said
    assert wait_until(lambda: states(run_dir) == ["acting"], 60)
    assert wait_until(lambda: len(workers(program)) == 1, 20)

    code, said = control(run_dir, "--num_rollout_workers=0")
    assert (code, "num_rollout_workers" in said) == (2, True), said

    code, said = control(run_dir, "--stop")
    assert (code, "writes a checkpoint" in said) == (0, True), said
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    assert "stopping after the stop command: checkpoint of iteration" in program.stdout
    last = metrics(run_dir)[-1]
    assert all(m["lag/policy_versions_max"] <= 1 for m in metrics(run_dir)), "whatever was fetched ahead"
    assert (run_dir / "checkpoints" / str(last["iteration"])).exists()
    balance = sum(last[f"replay/{k}_fragments"] for k in ("trained", "expired", "dropped", "held"))
    assert last["replay/inserted_fragments"] == balance
    assert last["rollout/worker_restarts"] == 0
    status = control_files.read_status(run_dir)
    assert (status["state"], status["errors"]) == ("ended", {})
    code, said = control(run_dir, "--status")
    assert (code, "state 'ended'" in said) == (1, True), said
    assert not list(run_dir.glob("*.partial"))
    assert not (run_dir / "control.json").exists()


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(Config().to_dict()))
    return tmp_path


class Workers:
    """An experience side that does as it is told."""

    def __init__(self):
        self.number, self.replay_error = 1, ""

    def status(self):
        one = {"worker_id": 0, "state": "acting", "last_error": "it fell over\nat line 3"}
        return {"workers": [one], "replay_error": self.replay_error}

    def set_num_workers(self, number):
        if number > 8:
            raise ValueError(f"{number} are too many")
        self.number = number
        return f"there will be {number}"


def ask(run_dir, **command):
    name = control_files.give_command(run_dir, command, time.monotonic() + 5)
    assert wait_until(lambda: name in control_files.read_status(run_dir)["answers"])
    answer = control_files.read_status(run_dir)["answers"][name]
    return answer["done"], answer["message"]


def test_the_desk_obeys_refuses_and_tells(run_dir):
    stop, experience = StopSignal(), Workers()
    control_files.give_command(run_dir, {"stop": True}, time.monotonic())  # for a run that is no more
    with ControlDesk(run_dir, stop) as desk:
        assert wait_until(lambda: (control_files.read_status(run_dir) or {}).get("state") == "starting")
        assert ask(run_dir, num_rollout_workers=2) == (
            False,
            "the run is still starting, its workers too: try again in a minute",
        )
        desk.connect(experience)
        desk.observe({"iteration": 3.0, "env_steps": 96.0, "episode/return_mean_last_20": float("nan")})
        assert ask(run_dir, num_rollout_workers=2) == (True, "there will be 2")
        assert experience.number == 2
        assert ask(run_dir, num_rollout_workers=9) == (False, "9 are too many")
        assert not ask(run_dir, num_rollout_workers="many")[0]
        status = control_files.read_status(run_dir)
        assert (status["state"], status["pid"]) == ("running", os.getpid())
        assert status["progress"] == {"iteration": 3.0, "env_steps": 96.0, "episode/return_mean_last_20": None}
        assert status["errors"] == {"rollout worker 0": "it fell over\nat line 3"}
        assert not stop.event.is_set()
        assert ask(run_dir, stop=True)[0]
        assert stop.event.is_set()
        assert ask(run_dir, num_rollout_workers=3) == (False, "the run is stopping")
        desk.disconnect()
        desk.failed("everything broke")
    status = control_files.read_status(run_dir)
    assert (status["state"], status["errors"]["run"]) == ("failed", "everything broke")
    assert status["rollout"]["workers"][0]["worker_id"] == 0


def test_a_directory_that_cannot_be_written_does_not_end_the_run(run_dir, monkeypatch):
    refused = []

    def full(*_):
        refused.append(1)
        raise OSError("no space left on device")

    monkeypatch.setattr(control_desk, "_LOOK_S", 0.01)
    monkeypatch.setattr(control_desk, "_STATUS_S", 0.0)
    with ControlDesk(run_dir, StopSignal()) as desk, monkeypatch.context() as patch:
        patch.setattr(control_files, "write_status", full)
        assert wait_until(lambda: len(refused) > 2)
        patch.undo()
        desk.observe({"iteration": 1.0})
        assert wait_until(lambda: (control_files.read_status(run_dir) or {}).get("state") == "running")


def test_nobody_answers_for_a_run_that_is_dead(run_dir):
    code, said = control(run_dir, "--stop", deadline_s=1)
    assert (code, "has never written its status" in said) == (1, True), said
    code = "import sys, time; from minestudio_jax.run.control_desk import *\n" \
        "with ControlDesk(Path(sys.argv[1]), StopSignal()): time.sleep(600)"  # fmt: skip
    killed = subprocess.Popen([sys.executable, "-c", code, str(run_dir)])
    assert wait_until(lambda: control_files.read_status(run_dir) is not None, 30)
    os.kill(killed.pid, signal.SIGSTOP)
    code, said = control(run_dir, "--num_rollout_workers=2", deadline_s=2)
    assert (code, "did not answer within --deadline_s" in said, "the last status is of" in said) == (1, True, True), (
        said
    )
    assert not (run_dir / "control.json").exists(), "a later run shall not find it"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    began = time.monotonic()
    code, said = control(run_dir, "--stop")
    assert (code, "no living run" in said, f"by process {killed.pid}" in said) == (1, True, True), said
    assert time.monotonic() - began < 30, "what is known to be dead is not waited for"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_rollout_workers=0"], "num_rollout_workers"),
        (["--num_rollout_workers=many"], "num_rollout_workers"),
        (["--stop", "--num_rollout_workers=2"], "exclude each other"),
        (["--trainer.discount=1"], "trainer.discount"),
        (["now"], "'now'"),
    ],
)
def test_wrong_arguments_are_refused(run_dir, arguments, words, capsys):
    assert main(["control", f"--run.dir={run_dir}", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_directory_without_a_run_or_without_workers_is_refused(tmp_path, capsys):
    assert main(["control", f"--run.dir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["control"]) == 2
    assert "--run.dir is missing" in capsys.readouterr().err
    config = Config().to_dict()
    config["rollout"]["mode"] = "device"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["control", f"--run.dir={tmp_path}", "--num_rollout_workers=2"]) == 2
    assert "no rollout workers" in capsys.readouterr().err


def test_help_is_given():
    program = Program("control", "--help")
    assert program.wait(60) == 0
    assert "--num_rollout_workers" in program.stdout
