"""A program that lives no longer than the process that started it, nor does anything it starts.

Simulator side: the standard library only, Python 3.8 syntax. Linux.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence

from minestudio_jax.envs.marked_processes import kill_marked

log = logging.getLogger(__name__)

_MARK = "MINESTUDIO_JAX_OWNED"
_REAP_DEADLINE_S = 10.0

# Becomes the program. Before that it asks the kernel (prctl's PR_SET_PDEATHSIG) for a SIGKILL when the thread that
# started it ends; the question who its parent is comes after that, lest the parent died in between.
_BECOME = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() == int(sys.argv[1]): os.execvp(sys.argv[2], sys.argv[2:])"
)


class OwnedProcess:
    """The program stays in this process's group and session, so that whoever kills the group kills it too.

    The kernel kills it when the thread that started it ends, and `close` kills also what it has started, found by a
    mark in its environment variables, which all descendants inherit wherever they hide.

    Args:
      command: program, searched for in PATH, and its arguments.
      variables: its environment variables.
      folder: its working directory; None: this one.
      pipe: give it a pipe to print to, `stdout`; otherwise it prints where this process does.
      pass_fds: descriptors it inherits.
    Attributes:
      pid: of the program.
      stdout: the reading end of the pipe, binary; None without one.
    Raises:
      OSError: the operating system starts no more processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        folder: str | None = None,
        pipe: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
            env={**variables, _MARK: self._mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else None,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
        )
        self.pid, self.stdout = self._process.pid, self._process.stdout

    def end(self, timeout_s: float = 0.0) -> str:
        """How the program ended, such as "ended with status 1"; empty if it still runs after so many seconds."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return ""
        if status < 0:
            return f"was killed by signal {-status} ({signal.strsignal(-status)})"
        return f"ended with status {status}"

    def close(self, grace_s: float = 0.0) -> None:
        """Kills the program and all it has started; harmless if called twice.

        Args:
          grace_s: seconds that it has to end by itself after a SIGTERM.
        """
        if grace_s > 0.0 and not self.end():
            self._process.terminate()
            self.end(grace_s)
        if not self.end():
            self._process.kill()
        kill_marked(_MARK, self._mark)
        if not self.end(_REAP_DEADLINE_S):
            log.warning("process %d was killed, but the system has not ended it yet", self.pid)
