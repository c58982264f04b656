"""ControlDesk: tells the world how a run is doing, and takes what the control program asks of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from minestudio_jax.run import control_files
from minestudio_jax.run.stop_signal import StopSignal

_LOOK_S = 0.25  # between two looks for a command
_STATUS_S = 1.0  # between two writings of the status
_ANSWERS_KEPT = 20

_SHOWN = (
    "iteration", "env_steps", "trained_steps", "policy_version", "wall_time_s", "speed/env_steps_per_s",
    "speed/trained_steps_per_s", "episode/return_mean_last_20",
)  # fmt: skip

log = logging.getLogger(__name__)


class Steerable(Protocol):
    """What the desk wants of the experience side."""

    def status(self) -> Mapping[str, Any]:
        """Workers and buffer as they were last seen; JSON values. Empty if there are none."""
        ...

    def set_num_workers(self, number: int) -> str:
        """Has workers added or drained; says what will happen. ValueError: it cannot be done."""
        ...


class ControlDesk:
    """A thread of its own, which the learner never waits for. A context: what ends it is the last thing it tells.

    Args:
      run_dir: of the run; status.json and control.json lie in it.
      stop: set by a stop command, as by a signal.
    """

    def __init__(self, run_dir: Path, stop: StopSignal) -> None:
        self._run_dir, self._stop = run_dir, stop
        self._experience: Steerable | None = None
        self._last_seen: Mapping[str, Any] = {}  # of an experience that is no longer connected
        self._stopping = False
        self._metrics: Mapping[str, float] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._error = ""
        self._beat = 0
        self._said_unwritable = False
        self._whereabouts = control_files.whereabouts()
        self._closed = threading.Event()
        control_files.take_command(run_dir)  # meant for an earlier run
        self._thread = threading.Thread(target=self._run, name="control-desk", daemon=True)

    def __enter__(self) -> ControlDesk:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, traceback
        if error is not None:
            self._error = self._error or str(error) or type(error).__name__
        self._closed.set()
        self._thread.join()
        self._answer_command()  # one that came too late is told so
        self._tell("failed" if self._error else "ended")

    def connect(self, experience: Steerable) -> None:
        """From now on there are workers to be told of and steered."""
        self._experience = experience

    def disconnect(self) -> None:
        """From now on they are being stopped."""
        self._last_seen = self._seen()
        self._experience, self._stopping = None, True

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Takes note of an iteration."""
        self._metrics = metrics

    def failed(self, reason: str) -> None:
        """The run will end because of this."""
        self._error = reason

    def _run(self) -> None:
        told = -math.inf
        while not self._closed.wait(_LOOK_S):
            answered = self._answer_command()
            if answered or time.monotonic() - told >= _STATUS_S:
                told = time.monotonic()
                stopping = self._stopping or self._stop.event.is_set()
                self._tell("stopping" if stopping else "running" if self._metrics else "starting")

    def _answer_command(self) -> bool:
        """Does what is asked, if anything is."""
        try:
            command = control_files.take_command(self._run_dir)
        except OSError as error:
            log.warning("a command cannot be taken from %s: %s", self._run_dir, error)
            return False
        if command is None or "id" not in command:
            return False
        try:
            done, message = True, self._obey(command)
        except ValueError as error:
            done, message = False, str(error)
        log.info("command %s: %s", {k: v for k, v in command.items() if k != "id"}, message)
        self._answers[command["id"]] = {"done": done, "message": message}
        self._answers = dict(list(self._answers.items())[-_ANSWERS_KEPT:])
        return True

    def _obey(self, command: Mapping[str, Any]) -> str:
        if self._stopping or self._closed.is_set() or self._stop.event.is_set():
            if command.get("stop"):
                return "the run is stopping already"
            raise ValueError("the run is stopping")
        if command.get("stop"):
            self._stop.request("the stop command")
            return "the run stops: it writes a checkpoint and ends; the same command continues it"
        number = command.get("num_rollout_workers")
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"num_rollout_workers={number!r} is not a number of at least 1")
        experience = self._experience
        if experience is None:
            raise ValueError("the run is still starting, its workers too: try again in a minute")
        return experience.set_num_workers(number)

    def _seen(self) -> Mapping[str, Any]:
        experience = self._experience
        return experience.status() if experience is not None else self._last_seen

    def _tell(self, state: str) -> None:
        self._beat += 1
        experience = self._seen()
        errors = {
            f"rollout worker {worker['worker_id']}": worker["last_error"]
            for worker in experience.get("workers", ())
            if worker["last_error"]
        }
        if experience.get("replay_error"):
            errors["replay buffer"] = experience["replay_error"]
        if self._error:
            errors["run"] = self._error
        progress = {name: self._metrics[name] for name in _SHOWN if name in self._metrics}
        status = {
            "beat": self._beat,
            "time": time.time(),
            "state": state,
            **self._whereabouts,
            "progress": {name: value if math.isfinite(value) else None for name, value in progress.items()},
            "rollout": experience,
            "errors": errors,
            "answers": self._answers,
        }
        try:
            control_files.write_status(self._run_dir, status)
        except OSError as error:
            if not self._said_unwritable:
                log.warning("status.json in %s cannot be written: %s; the run goes on", self._run_dir, error)
            self._said_unwritable = True
        else:
            self._said_unwritable = False
