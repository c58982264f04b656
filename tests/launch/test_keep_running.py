"""keep_running.sh against a command line of Google Cloud's that has one slice and takes it away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.scripts import FLAGS, LAUNCH, SLICE, TYPE


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository with little but the scripts: one file is new, one is ignored, and one is deleted but not committed."""
    folder = tmp_path / "clone"
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / ".gitignore").write_text("/runs/\n")
    (folder / "old.flags").touch()
    subprocess.run(["git", "init", "--quiet", folder], check=True, timeout=60)
    subprocess.run(["git", "-C", folder, "add", "."], check=True, timeout=60)
    (folder / "new.flags").touch()
    (folder / "old.flags").unlink()
    (folder / "runs").mkdir()
    (folder / "runs/metrics.jsonl").touch()
    return folder


@pytest.fixture
def keep_running(tmp_path, clone) -> Callable[..., tuple[int, str, list[str]]]:
    def run(*fates: str, options: tuple[str, ...] = (), state: str = "") -> tuple[int, str, list[str]]:
        (tmp_path / "fates").write_text("\n".join(fates))
        if state:
            (tmp_path / "state").write_text(state)
        gcloud = tmp_path / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).parent}/fake_gcloud.py "$@"\n')
        gcloud.chmod(0o755)
        waits = tmp_path / "sleep"
        waits.write_text("#!/bin/sh\nexit 0\n")
        waits.chmod(0o755)
        environment = {
            "FAKE_GCLOUD": str(tmp_path),
            "HOME": str(tmp_path),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        result = subprocess.run(
            [
                "bash",
                clone / "launch/tpu_vm/keep_running.sh",
                *SLICE,
                *TYPE,
                "--spot",
                "--poll_s=1",
                *options,
                "--",
                *FLAGS,
            ],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert len((tmp_path / ".ray/auth_token").read_text()) == 64
        assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o077 == 0
        return result.returncode, result.stdout + result.stderr, (tmp_path / "calls").read_text().split()

    return run


def launches(calls: list[str]) -> list[str]:
    return [name for name in calls if name in ("create", "delete", "learner", "stop_learner")]


def test_a_run_that_finishes_is_launched_once(keep_running, tmp_path):
    code, said, calls = keep_running("finished")
    assert code == 0, said
    assert launches(calls) == ["create", "learner"]
    assert [name for name in calls if name in ("scp", "install", "ray")] == ["scp", "install", "ray"]
    with tarfile.open(tmp_path / "sent.tar.gz") as sent:
        names = set(sent.getnames())
    assert {"launch/tpu_vm/host.sh", "new.flags"} <= names
    assert "old.flags" not in names
    assert not any(name.startswith((".git/", "runs")) for name in names)
    assert said.endswith("the run is finished; delete.sh gives the TPUs back\n")


def test_a_slice_that_is_taken_away_is_asked_for_anew(keep_running):
    code, said, calls = keep_running("preempted", "finished")
    assert code == 0, said
    assert [name for name in launches(calls) if name != "stop_learner"] == [
        *("create", "learner"),
        *("delete", "create", "learner"),
    ]


@pytest.mark.parametrize("fate", ["failed", "absent"])
def test_a_run_that_breaks_is_stopped_everywhere_and_started_again_on_the_same_slice(keep_running, fate):
    code, said, calls = keep_running(fate, "finished")
    assert code == 0, said
    assert launches(calls) == ["create", "learner", "stop_learner", "learner"]


def test_a_run_that_breaks_again_and_again_is_given_up(keep_running):
    code, said, calls = keep_running("failed", "failed", "failed", options=("--max_relaunches=1",))
    assert code == 1
    assert calls.count("learner") == 2
    assert "the run is broken again after --max_relaunches=1" in said


def test_hosts_that_cannot_be_reached_now_and_then_are_left_alone(keep_running):
    code, said, calls = keep_running("unreachable unreachable running unreachable unreachable finished")
    assert code == 0, said
    assert launches(calls) == ["create", "learner"]


def test_hosts_that_cannot_be_reached_three_times_in_a_row_are_started_again(keep_running):
    code, said, calls = keep_running("unreachable unreachable unreachable", "finished")
    assert code == 0, said
    assert launches(calls) == ["create", "learner", "stop_learner", "learner"]


def test_relaunches_of_a_run_that_was_sound_for_long_are_counted_anew(keep_running):
    sound = "running " * 9  # and the one that every start begins with
    code, said, calls = keep_running("failed", f"{sound} failed", "finished", options=("--max_relaunches=1",))
    assert code == 0, said
    assert calls.count("learner") == 3


def test_relaunches_of_a_run_that_was_sound_for_a_moment_are_counted_on(keep_running):
    moment = "running " * 8
    code, said, calls = keep_running("failed", f"{moment} failed", "finished", options=("--max_relaunches=1",))
    assert code == 1, said
    assert calls.count("learner") == 2


def test_a_trainer_that_refuses_its_settings_again_and_again_is_not_asked_for_ever(keep_running):
    code, said, calls = keep_running("2", "2", "2", "2", "2", "finished")
    assert code == 2
    assert launches(calls) == ["create", "learner", *["stop_learner", "learner"] * 4]
    log, error = said.splitlines()[-2:]
    assert log == "what the log says, --lines=20"
    assert error.startswith("keep_running.sh: error: the trainer ended with exit code 2 5 times in a row")


def test_a_refusal_after_a_sound_time_is_the_first_again(keep_running):
    code, said, calls = keep_running("2", "2", "2", "2", "running " * 9 + "2", "finished")
    assert code == 0, said
    assert calls.count("learner") == 6


@pytest.mark.parametrize("other", ["failed", "23", "preempted"])
def test_refusals_with_something_else_between_them_are_tried_again(keep_running, other):
    code, said, calls = keep_running("2", "2", "2", other, "2", "2", "2", "finished")
    assert code == 0, said
    assert calls.count("learner") == 8


def test_a_refusal_from_before_the_script_was_called_does_not_count(keep_running, tmp_path):
    (tmp_path / "looks").write_text("2")
    code, said, calls = keep_running("2", "2", "2", "2", "finished", state="ACTIVE")
    assert code == 0, said
    assert launches(calls) == ["stop_learner", "learner"] * 5


def test_the_script_takes_up_a_request_that_is_there(keep_running):
    code, said, calls = keep_running("finished", state="ACTIVE")
    assert code == 0, said
    assert launches(calls) == ["stop_learner", "learner"]
