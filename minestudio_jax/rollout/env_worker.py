"""EnvWorker: the parent's handle of one environment in one OS process."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from minestudio_jax.envs.env import EnvironmentFailure, EnvironmentSpec, Observation
from minestudio_jax.envs.host_protocol import (
    CURRENT,
    FINAL,
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    STEP_ANSWER,
    ObservationMemory,
    ProtocolError,
    StepOutcome,
    new_memory_fd,
    pack,
    spec_from_json,
    unpack,
    unpack_outcome,
)
from minestudio_jax.envs.marked_processes import kill_marked, marked_processes
from minestudio_jax.rollout.env_pool import FAILURE_CAUSES
from minestudio_jax.rollout.heap_variables import without_heap_variables
from minestudio_jax.rollout.instance_log import InstanceLog
from minestudio_jax.rollout.process_guard import MARKER_VARIABLE

log = logging.getLogger(__name__)

_HOST_PROGRAM = Path(__file__).parents[1] / "envs" / "host.py"
_EXIT_WAIT_S = 0.1  # from the socket's end to the process's: the kernel is between the two
_REAP_DEADLINE_S = 10.0


class InstanceFailure(EnvironmentFailure):
    """One instance of an environment broke.

    Attributes:
      cause: one of FAILURE_CAUSES.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        assert cause in FAILURE_CAUSES, cause
        self.cause = cause


class PermanentEnvironmentFailure(InstanceFailure):
    """The environment cannot be built as it is configured; starting it again is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__("start", message)


@dataclass(frozen=True)
class EnvLaunch:
    """How environments are started and how long they may take; the same for all of a pool.

    Attributes:
      factory: env.factory, `package.module:function`.
      options: env.options, keyword arguments of the factory, JSON values.
      python: env.python; None: this interpreter.
      start_deadline_s, reset_deadline_s, step_deadline_s: seconds.
      worker_id: of the rollout worker; for messages.
      first_index: index in the run of the worker's environment 0.
      resize: height and width that images are given before they come here; None: as they are.
      cpus: that its processes may run on; None: those of the thread that starts them.
      niceness: of its processes, at least; see nice(2).
    """

    factory: str
    options: dict[str, Any] = field(default_factory=dict)
    python: str | None = None
    start_deadline_s: float = 300.0
    reset_deadline_s: float = 240.0
    step_deadline_s: float = 60.0
    worker_id: int = 0
    first_index: int = 0
    resize: tuple[int, int] | None = None
    cpus: frozenset[int] | None = None
    niceness: int = 0


class EnvWorker:
    """One life of one environment. Requests return at once; `receive` takes the answer when `fileno` is readable.

    Every fault (exceeded deadline, death, garbage, an exception of the environment) kills all its processes and is
    raised as InstanceFailure with the cause and the end of the instance's log. The worker is then of no more use than
    `close`.

    Args:
      launch: how to start it.
      env_id: index of the environment in its pool.
      seed: for the factory.
      marker: how its processes are found; begins with a ProcessGuard's marker.
      instance_log: takes what its processes print.
    Attributes:
      name: for messages: "environment 3 of worker 0".
      spec: once it has started.
      deadline: `time.monotonic()` by which the answer must be there; infinite while nothing is asked.
      started_at: `time.monotonic()`.
    Raises:
      PermanentEnvironmentFailure: there is no such interpreter, or the options are too long for a message.
      InstanceFailure: the operating system starts no more processes, or its log cannot be opened.
    """

    spec: EnvironmentSpec

    def __init__(self, launch: EnvLaunch, env_id: int, seed: int, marker: str, instance_log: InstanceLog) -> None:
        self._launch, self._log = launch, instance_log
        self.name = f"environment {env_id} of worker {launch.worker_id}"
        # The end of it keeps the marker of environment 1 from matching that of environment 10.
        self._marker = f"{marker};"
        self._closed = False
        self._asked = ""
        self.deadline = math.inf
        self.started_at = time.monotonic()
        self._limits_s = {
            "start": launch.start_deadline_s, "reset": launch.reset_deadline_s, "step": launch.step_deadline_s
        }  # fmt: skip
        try:
            request = pack(
                {
                    "type": "start",
                    "protocol": PROTOCOL_VERSION,
                    "factory": launch.factory,
                    "index": launch.first_index + env_id,
                    "seed": seed,
                    "options": launch.options,
                    "resize": launch.resize,
                    "deadlines_s": self._limits_s,
                }
            )
        except ProtocolError as error:
            raise PermanentEnvironmentFailure(f"env.options cannot be sent to the environment: {error}") from None
        python = launch.python or sys.executable
        with contextlib.ExitStack() as ours:  # closed again if it does not come to a process
            try:
                self._memory_fd = new_memory_fd()
                ours.callback(os.close, self._memory_fd)
                self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.callback(self._socket.close)
                self._socket.setblocking(False)
                program = [python, str(_HOST_PROGRAM), str(theirs.fileno()), str(self._memory_fd)]
                with theirs, self._log.open() as log_file, _running_on(launch.cpus):
                    self._process = subprocess.Popen(
                        [*program, f"env-{launch.worker_id}-{env_id}"],
                        stdin=subprocess.DEVNULL,
                        stdout=log_file,
                        stderr=subprocess.STDOUT,
                        pass_fds=(theirs.fileno(), self._memory_fd),
                        start_new_session=True,
                        env=child_environment(self._marker, foreign=launch.python is not None),
                    )
                if os.getpriority(os.PRIO_PROCESS, 0) < launch.niceness:
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, launch.niceness)
            except OSError as error:
                if error.filename == python:
                    raise PermanentEnvironmentFailure(
                        f"env.python={python!r} cannot be run ({error.strerror}); name the executable of an interpreter"
                    ) from None
                raise InstanceFailure(
                    "start", f"{self.name} cannot be started: {error}; free memory, processes, file descriptors or disk"
                ) from None
            ours.pop_all()
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

    def step(self, request: bytes, now: float) -> None:
        """Asks for one step.

        Args:
          request: made by StepRequests.
          now: `time.monotonic()`.
        """
        # On the way of every step, therefore without `_ask`.
        self._asked, self.deadline = "step", now + self._launch.step_deadline_s
        try:
            self._socket.send(request)
        except OSError as error:  # it is dead: the reading side finds that out, and says why
            log.debug("no request reaches %s: %s", self.name, error)

    def receive(self) -> StepOutcome | str | None:
        """Takes what has come, without waiting.

        Returns:
          "start" or "reset" if that is done, the outcome of a step, or None if there is no answer yet. Where a step
          ended the episode, its observation is `final`.
        Raises:
          PermanentEnvironmentFailure: the environment cannot be built as configured.
          InstanceFailure: any other fault.
        """
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            when = f"during {self._asked}" if self._asked else "while nothing was asked of it"
            raise self.failure("death", f"its process {self._exit_description()} {when}")
        try:
            if data[0] != STEP_ANSWER or self._asked != "step":
                return self._understand(unpack(data))
            outcome = unpack_outcome(data)
        except (ProtocolError, KeyError, TypeError, ValueError, OSError) as error:
            raise self.failure("garbage", f"its process gave an answer that cannot be understood: {error!r}") from error
        self._asked, self.deadline = "", math.inf
        return outcome

    def check_deadline(self, now: float) -> None:
        """Raises InstanceFailure if the answer is overdue at `now`, a `time.monotonic()`."""
        if now >= self.deadline:
            raise self.failure(
                "hang",
                f"its {self._asked} took longer than env.{self._asked}_deadline_s={self._limits_s[self._asked]:g}; "
                "find out from the log why, or raise that setting",
            )

    @property
    def current(self) -> Observation:
        """The observation to act on, views that the next request may overwrite: copy what is to last."""
        return self._slots[CURRENT]

    @property
    def final(self) -> Observation:
        """The last observation of the episode that ended last; it survives the reset, not the next episode's end."""
        return self._slots[FINAL]

    def failure(self, cause: str, what: str, permanent: bool = False) -> InstanceFailure:
        """Kills the instance; the error to raise, with what happened and the tail of the log.

        Whatever goes wrong before it has started has the cause "start".
        """
        self.kill()
        tail = self._log.tail()
        where = f"the end of {self._log.path}:\n{tail}" if tail else f"its log {self._log.path} is empty or gone"
        message = f"{self.name} failed: {what}; {where}"
        if permanent:
            return PermanentEnvironmentFailure(message)
        return InstanceFailure("start" if self._asked == "start" else cause, message)

    def resident_bytes(self) -> int:
        """Resident memory of all its processes together, however they hide."""
        total = 0
        for pid in marked_processes(MARKER_VARIABLE, self._marker):
            with contextlib.suppress(psutil.Error):  # it has just ended
                total += psutil.Process(pid).memory_info().rss
        return total

    def ask_to_close(self, deadline: float = math.inf) -> None:
        """Asks the environment to close in good order; once it has, the socket is readable and at its end."""
        if not self._closed:
            self._ask("close", pack({"type": "close"}))
            self.deadline = deadline

    def has_ended(self) -> bool:
        """After `ask_to_close`, when the socket is readable: whether that is its end."""
        try:
            return self._socket.recv(MAX_MESSAGE_BYTES) == b""
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
        kill_marked(MARKER_VARIABLE, self._marker)

    def close(self) -> None:
        """Kills and reaps; harmless if called twice."""
        self.kill()
        try:
            self._process.wait(_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            log.warning("process %d of %s was killed, but the system has not ended it yet", self.pid, self.name)

    def is_reaped(self) -> bool:
        """After `kill`: whether its process has left the process table; does not wait."""
        return self._process.poll() is not None

    def _ask(self, kind: str, request: bytes) -> None:
        self._asked = kind
        self.deadline = time.monotonic() + self._limits_s.get(kind, math.inf)
        # To a dead process nothing can be sent; the reading side finds that out and says why it died.
        with contextlib.suppress(OSError):
            self._socket.sendall(request)

    def _understand(self, message: dict[str, Any]) -> str:
        """Takes an answer in JSON."""
        asked, kind = self._asked, message["type"]
        if kind == "failed" and message["cause"] in FAILURE_CAUSES:
            raise self.failure(message["cause"], f"{asked}: {message['message']}", bool(message["permanent"]))
        if asked not in ("start", "reset") or kind != {"start": "started", "reset": "reset"}[asked]:
            raise ProtocolError(f"a {kind!r} message, asked was {asked!r}")
        if asked == "start":
            self.spec = spec_from_json(message["spec"])
            self._slots = ObservationMemory(self._memory_fd, self.spec).slots
        self._asked, self.deadline = "", math.inf
        return asked

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


@contextlib.contextmanager
def _running_on(cpus: frozenset[int] | None) -> Iterator[None]:
    """What this thread starts meanwhile, and all that comes of it, may run on these CPUs."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def child_environment(marker: str, foreign: bool) -> dict[str, str]:
    """Environment variables of an environment's process.

    It finds the modules that this process finds, except those that belong to this interpreter: its own interpreter
    brings them along, or, if it is a foreign one, could not use them. A simulator is to give memory back to the kernel,
    whatever this process does.
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
    variables = {**without_heap_variables(os.environ), MARKER_VARIABLE: marker, "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(import_path)
    if foreign:
        variables.pop("PYTHONHOME", None)
    return variables
