"""train.sbatch against programs in Slurm's place: who is told to stop, and when the job goes back into the queue."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, ROOT
from tests.rollout.processes import wait_until
from tests.run.programs import MARKER, Program

FAKE = Path(__file__).parent / "fake_slurm.py"


class Job(Program):
    """train.sbatch inside a job, with tests.launch.fake_host in the trainer's place."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._mark = f"{MARKER}={uuid.uuid4().hex}"
        key, value = self._mark.split("=")
        self._write_programs()
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *("bash", str(LAUNCH / "slurm/train.sbatch"), f"--venv={folder}/venv", f"--ray_port={port}"),
                *("--", f"--folder={folder}", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                key: value,
                "FAKE_SLURM": str(folder),
                "HOME": str(folder),
                "PATH": f"{folder}/bin:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "SLURM_SUBMIT_DIR": str(ROOT),
                "SLURM_JOB_ID": "77",
                "SLURM_JOB_NODELIST_HET_GROUP_0": "learners",
                "SLURM_JOB_NODELIST_HET_GROUP_1": "rollouts",
            },
            start_new_session=True,
        )
        self.stdout = self.stderr = ""

    def _write_programs(self) -> None:
        def write(path: str, command: str) -> None:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(f"#!/bin/sh\n{command}\n")
            (self.folder / path).chmod(0o755)

        for name in ("srun", "scontrol", "squeue"):
            write(f"bin/{name}", f'exec {sys.executable} -S {FAKE} {name} "$@"')
        write("venv/bin/ray", f'exec {sys.executable} -S {FAKE} ray "$@"')
        write("venv/bin/python", f'shift 2; exec {sys.executable} -m tests.launch.fake_host "$@"')

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            return self.process.poll() is not None or len(list(self.folder.glob("*.ready"))) == 2

        assert wait_until(ready, 60.0)
        if self.process.poll() is not None:
            self.wait()
            raise AssertionError(f"ended early: {self.stdout}\n{self.stderr}")

    def told_to_stop(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.stopped"))

    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def started() -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        for pid in job.alive():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("state", "again"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_job_whose_time_is_up_stops_its_trainer_and_is_queued_again_unless_cancelled(tmp_path, started, state, again):
    (tmp_path / "state").write_text(state)
    job = Job(tmp_path)
    started.append(job)
    job.wait_until_ready()
    flags = [json.loads((tmp_path / f"{index}.ready").read_text())["flags"] for index in (0, 1)]
    assert [f["trainer.host_index"] for f in flags] == ["0", "1"]
    assert {f["trainer.coordinator"] for f in flags} == {"localhost:6380"}
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 0, job.stderr
    assert job.told_to_stop() == ["0.stopped", "1.stopped"]
    assert job.requeued() is again
    job.assert_nothing_left()


def test_a_job_with_a_host_that_fails_ends_with_its_code_and_is_not_queued_again(tmp_path, started):
    (tmp_path / "state").write_text("RUNNING")
    job = Job(tmp_path, "--fail=1:5")
    started.append(job)
    assert job.wait() == 128 + signal.SIGKILL  # of the other host, whose time was over
    assert not job.requeued()
    job.assert_nothing_left()
