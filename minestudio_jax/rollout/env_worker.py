"""EnvWorker: the parent's handle of one environment in one OS process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minestudio_jax.envs.env import EnvironmentFailure, EnvironmentSpec, Observation
from minestudio_jax.envs.host_protocol import (
    CURRENT,
    FINAL,
    PROTOCOL_VERSION,
    MessageReader,
    ObservationMemory,
    ProtocolError,
    new_memory_fd,
    pack,
    spec_from_json,
)
from minestudio_jax.rollout.process_guard import MARKER_VARIABLE, kill_marked

log = logging.getLogger(__name__)

_HOST_PROGRAM = Path(__file__).parents[1] / "envs" / "host.py"
_LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 8192
_EXIT_WAIT_S = 0.1  # from the socket's end to the process's: the kernel is between the two
_REAP_DEADLINE_S = 10.0


class PermanentEnvironmentFailure(EnvironmentFailure):
    """The environment cannot be built as it is configured; starting it again is of no use."""


@dataclass(frozen=True)
class EnvLaunch:
    """How environments are started and how long they may take; the same for all of a pool.

    Attributes:
      factory: env.factory, `package.module:function`.
      options: env.options, keyword arguments of the factory, JSON values.
      python: env.python; None: this interpreter.
      log_dir: the log of environment i is `env-<i>.log` in it.
      start_deadline_s, reset_deadline_s, step_deadline_s: seconds.
    """

    factory: str
    log_dir: Path
    options: dict[str, Any] = field(default_factory=dict)
    python: str | None = None
    start_deadline_s: float = 300.0
    reset_deadline_s: float = 240.0
    step_deadline_s: float = 60.0


@dataclass(frozen=True)
class StepOutcome:
    """What came of one action. Where it ended the episode, the observation is the worker's final one.

    Attributes:
      info: numbers, strings and lists and dicts of them, as the environment gave them; arrays became None.
    """

    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class EnvWorker:
    """One life of one environment. Requests return at once; `receive` takes the answer when `fileno` is readable.

    Every fault (exceeded deadline, death, garbage, an exception of the environment) kills all its processes and is
    raised as EnvironmentFailure with the cause and the end of the instance's log. The worker is then of no more use
    than `close`.

    Args:
      launch: how to start it.
      index: of the environment in the run.
      seed: for the factory.
      marker: how its processes are found; begins with a ProcessGuard's marker.
    Attributes:
      spec: once it has started.
      deadline: `time.monotonic()` by which the answer must be there; None while nothing is asked.
    Raises:
      PermanentEnvironmentFailure: there is no such interpreter, or the options are too long for a message.
      EnvironmentFailure: the operating system starts no more processes.
    """

    spec: EnvironmentSpec

    def __init__(self, launch: EnvLaunch, index: int, seed: int, marker: str) -> None:
        self._launch, self._index = launch, index
        # The end of it keeps the marker of environment 1 from matching that of environment 10.
        self._marker = f"{marker};"
        self._reader = MessageReader()
        self._closed = False
        self._asked = ""
        self.deadline: float | None = None
        try:
            request = pack(
                {
                    "type": "start",
                    "protocol": PROTOCOL_VERSION,
                    "factory": launch.factory,
                    "index": index,
                    "seed": seed,
                    "options": launch.options,
                    "deadlines_s": {kind: self._limit_s(kind) for kind in ("start", "reset", "step")},
                }
            )
        except ProtocolError as error:
            raise PermanentEnvironmentFailure(f"env.options cannot be sent to the environment: {error}") from None
        launch.log_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = launch.log_dir / f"env-{index:04d}.log"
        self._memory_fd = new_memory_fd()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        python = launch.python or sys.executable
        try:
            with theirs, self.log_path.open("ab") as log_file:
                self._log_start = log_file.tell()
                self._process = subprocess.Popen(
                    [python, str(_HOST_PROGRAM), str(theirs.fileno()), str(self._memory_fd), f"env-{index}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), self._memory_fd),
                    start_new_session=True,
                    env=child_environment(self._marker, foreign=launch.python is not None),
                )
        except OSError as error:
            self._socket.close()
            os.close(self._memory_fd)
            if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
                raise PermanentEnvironmentFailure(
                    f"env.python={python!r} cannot be run ({error.strerror}); name the executable of an interpreter"
                ) from None
            raise EnvironmentFailure(
                f"environment {index} cannot be started: {error}; free memory or processes"
            ) from None
        self._ask("start", request)

    @property
    def pid(self) -> int:
        """Of its process, which is also the number of its process group."""
        return self._process.pid

    def fileno(self) -> int:
        return self._socket.fileno()

    def reset(self, seed: int | None) -> None:
        """Asks for a new episode."""
        self._ask("reset", pack({"type": "reset", "seed": seed}))

    def step(self, action: Mapping[str, np.ndarray]) -> None:
        """Asks for one step; `action`: name -> int32 [1]."""
        self._ask("step", pack({"type": "step", "action": {name: a.tolist() for name, a in action.items()}}))

    def receive(self) -> StepOutcome | str | None:
        """Takes what has come, without waiting.

        Returns:
          "start" or "reset" if that is done, the outcome of a step, or None if there is no whole answer yet.
        Raises:
          PermanentEnvironmentFailure: the environment cannot be built as configured.
          EnvironmentFailure: any other fault.
        """
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            raise self.failure(f"its process {self._exit_description()} during {self._asked}")
        self._reader.feed(data)
        try:
            message = self._reader.next()
            return None if message is None else self._understand(message)
        except (ProtocolError, KeyError, TypeError, ValueError, OSError) as error:
            raise self.failure(f"its process gave an answer that cannot be understood: {error!r}") from error

    def check_deadline(self, now: float) -> None:
        """Raises EnvironmentFailure if the answer is overdue at `now`, a `time.monotonic()`."""
        if self.deadline is not None and now >= self.deadline:
            raise self.failure(
                f"its {self._asked} took longer than env.{self._asked}_deadline_s={self._limit_s(self._asked):g}; find "
                "out from the log why, or raise that setting"
            )

    @property
    def current(self) -> Observation:
        """The observation to act on, views that the next request may overwrite: copy what is to last."""
        return self._slots[CURRENT]

    @property
    def final(self) -> Observation:
        """The last observation of the episode that ended last; it survives the reset, not the next episode's end."""
        return self._slots[FINAL]

    def failure(self, cause: str, permanent: bool = False) -> EnvironmentFailure:
        """Kills the instance; the error to raise, with the cause and the tail of the log."""
        self.kill()
        tail = self._log_tail()
        where = f"the end of {self.log_path}:\n{tail}" if tail else f"it wrote nothing to {self.log_path}"
        kind = PermanentEnvironmentFailure if permanent else EnvironmentFailure
        return kind(f"environment {self._index} failed: {cause}; {where}")

    def ask_to_close(self) -> None:
        """Asks the environment to close in good order; once it has, the socket is readable and at its end."""
        if not self._closed:
            self._ask("close", pack({"type": "close"}))

    def has_ended(self) -> bool:
        """After `ask_to_close`, when the socket is readable: whether that is its end."""
        try:
            return self._socket.recv(65536) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self) -> None:
        """SIGKILLs all its processes and lets go of its memory; waits for none. Harmless if called twice."""
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        os.close(self._memory_fd)
        # Not waited for before, so the number is still this group's, even if its leader is dead.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        kill_marked(self._marker)

    def close(self) -> None:
        """Kills and reaps; harmless if called twice."""
        self.kill()
        try:
            self._process.wait(_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            log.warning(
                "process %d of environment %d was killed, but the system has not ended it yet", self.pid, self._index
            )

    def is_reaped(self) -> bool:
        """After `kill`: whether its process has left the process table; does not wait."""
        return self._process.poll() is not None

    def _ask(self, kind: str, request: bytes) -> None:
        self._asked = kind
        self.deadline = None if kind == "close" else time.monotonic() + self._limit_s(kind)
        # To a dead process nothing can be sent; the reading side finds that out and says why it died.
        with contextlib.suppress(OSError):
            self._socket.sendall(request)

    def _limit_s(self, kind: str) -> float:
        launch = self._launch
        return {"start": launch.start_deadline_s, "reset": launch.reset_deadline_s, "step": launch.step_deadline_s}[
            kind
        ]

    def _understand(self, message: dict[str, Any]) -> StepOutcome | str:
        if message["type"] == "failed":
            raise self.failure(f"{self._asked}: {message['message']}", bool(message["permanent"]))
        if message["type"] != {"start": "started"}.get(self._asked, self._asked):
            raise ProtocolError(f"a {message['type']!r} message, asked was {self._asked!r}")
        self.deadline = None
        if self._asked == "start":
            self.spec = spec_from_json(message["spec"])
            self._slots = ObservationMemory(self._memory_fd, self.spec).slots
        if self._asked != "step":
            return self._asked
        return StepOutcome(
            float(message["reward"]), bool(message["terminated"]), bool(message["truncated"]), dict(message["info"])
        )

    def _exit_description(self) -> str:
        """How the process ended, without reaping it."""
        give_up = time.monotonic() + _EXIT_WAIT_S
        while time.monotonic() < give_up:
            try:
                status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if status is not None:
                if status.si_code == os.CLD_EXITED:
                    return f"ended with status {status.si_status}"
                return f"was killed by signal {status.si_status} ({signal.strsignal(status.si_status)})"
            time.sleep(0.002)
        return "closed its socket"

    def _log_tail(self) -> str:
        """The last lines that this life of the environment wrote."""
        with self.log_path.open("rb") as log_file:
            size = log_file.seek(0, os.SEEK_END)
            log_file.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
            text = log_file.read(_LOG_TAIL_BYTES).decode(errors="replace")
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


def child_environment(marker: str, foreign: bool) -> dict[str, str]:
    """Environment variables of an environment's process.

    It finds the modules that this process finds, except those that belong to this interpreter: its own interpreter
    brings them along, or, if it is a foreign one, could not use them.
    """
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = {*libraries, *site.getsitepackages(), site.getusersitepackages()}
    own_folders = [Path(folder).resolve() for folder in own]
    import_path = []
    for entry in [*sys.path, os.getcwd()]:
        folder = Path(entry or os.getcwd()).resolve()
        belongs_to_interpreter = any(folder == o or o in folder.parents for o in own_folders)
        if folder.exists() and not belongs_to_interpreter and str(folder) not in import_path:
            import_path.append(str(folder))
    variables = {**os.environ, MARKER_VARIABLE: marker, "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(import_path)
    if foreign:
        variables.pop("PYTHONHOME", None)
    return variables
