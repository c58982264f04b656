"""Programs of the package as a user starts them: real processes, watched down to the last descendant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from tests.compilation import QUICK_COMPILATION
from tests.rollout.processes import PATIENCE, is_alive, wait_until

MARKER = "MINESTUDIO_JAX_TEST_RUN"

# A run small enough to start, learn a few iterations and stop within seconds.
TINY = (
    '--env.options={"size": 24, "height": 20, "time_limit": 12, "ray_strides": 8}',
    "--env.height=16",
    "--env.width=16",
    "--policy.channels=4",
    "--policy.hidden_size=16",
    "--rollout.num_envs=4",
    "--rollout.inference_batch_size=4",
    "--rollout.fragment_length=8",
    "--rollout.num_cpus_per_worker=2",
    "--trainer.context_length=4",
    "--trainer.batch_size_per_device=2",
    "--trainer.batches_per_iteration=2",
    "--trainer.save_interval=2",
    "--trainer.num_iterations=100000",
    "--logger.heartbeat_s=0.5",
)

# What every record of metrics.jsonl has.
PROMISED = {
    "iteration", "env_steps", "trained_steps", "policy_version", "wall_time_s", "episode/return_mean",
    "episode/length_mean", "episode/count", "loss/policy", "loss/value", "loss/entropy", "ppo/approx_kl",
    "ppo/clip_fraction", "speed/env_steps_per_s", "speed/trained_steps_per_s", "lag/policy_versions_min",
    "lag/policy_versions_mean", "lag/policy_versions_max", "time/wait_s", "time/update_s",
}  # fmt: skip
_COUNTERS = ("iteration", "env_steps", "trained_steps", "policy_version", "wall_time_s")


class Program:
    """One started program and everything that descends from it, found by a mark in its environment.

    Args:
      name: of the module, in the package if it has no dot; or the path of a shell script.
      *arguments: of the command line.
      cwd: directory it is started in.
      optimized: compiled as users' programs are. Otherwise as the tests are: sooner, and slower.
      environment: variables besides this process's.
    Attributes:
      started: all of them that are still known of, see `conftest.py`.
    """

    started: ClassVar[weakref.WeakSet[Program]] = weakref.WeakSet()

    def __init__(
        self,
        name: str,
        *arguments: str,
        cwd: Path | None = None,
        optimized: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._mark = f"{MARKER}={uuid.uuid4().hex}"
        key, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [*_command(name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={
                **{k: v for k, v in os.environ.items() if not (optimized and k in QUICK_COMPILATION)},
                key: value,
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
            start_new_session=True,
        )
        self.stdout = self.stderr = ""
        self.started.add(self)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Its exit code; a program that does not end in time, times PATIENCE, fails the test with what it said."""
        timeout_s *= PATIENCE
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self.stdout, self.stderr = self.process.communicate()
            raise AssertionError(f"still running after {timeout_s} s:\n{self.stdout}\n{self.stderr}") from None
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILLs its process group, as an operator would."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kills it if it still runs, as tests must that failed halfway, and lets go of it."""
        if self.process.poll() is None:
            self.kill()
            self.process.communicate()

    def alive(self) -> dict[int, str]:
        """pid -> command line of every living process that descends from it."""
        found = {}
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if self._mark.encode() in Path(f"/proc/{entry}/environ").read_bytes() and is_alive(int(entry)):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry)] = command
            except OSError:
                continue
        return found

    def assert_nothing_left(self, timeout_s: float = 10.0) -> None:
        assert wait_until(lambda: not self.alive(), timeout_s), self.alive()


def _command(name: str) -> list[str]:
    if name.endswith(".sh"):
        return [name]
    return [sys.executable, "-m", name if "." in name else f"minestudio_jax.{name}"]


def train(run_dir: Path, *arguments: str, **kwargs: Any) -> Program:
    return Program("train", f"--run.dir={run_dir}", *TINY, *arguments, **kwargs)


def whole_records(path: Path) -> list[dict[str, Any]]:
    """Of a file; of a living run's last line there may be a part only."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return whole_records(run_dir / "metrics.jsonl")


def wait_for_iteration(program: Program, run_dir: Path, iteration: int, timeout_s: float = 120.0) -> None:
    give_up = time.monotonic() + PATIENCE * timeout_s
    while not any(m["iteration"] >= iteration for m in metrics(run_dir)):
        if program.process.poll() is not None or time.monotonic() > give_up:
            program.wait(1.0)
            raise AssertionError(f"no iteration {iteration}: {program.stdout}\n{program.stderr}")
        time.sleep(0.1)


def checkpoints(run_dir: Path) -> list[int]:
    """Iterations after which a checkpoint is there."""
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


def assert_counters_never_go_back(records: list[dict[str, Any]]) -> None:
    """Nor leave out an iteration."""
    for before, after in pairwise(records):
        assert after["iteration"] == before["iteration"] + 1
        for counter in _COUNTERS:
            assert after[counter] >= before[counter], (counter, before, after)
