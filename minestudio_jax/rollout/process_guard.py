"""Sees to it that no environment's process survives, however it hides and however its parent dies.

A stopped process cannot end itself when its parent is gone, and what a process starts need not be in its group. So
every environment carries a mark (see `envs/marked_processes.py`), and a `ProcessGuard`, a tiny process, waits for the
death of the one that made it and then kills by that mark. It is no child of that one: when Ray kills an actor it kills
the children of the actor's process first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid

from minestudio_jax.envs import marked_processes
from minestudio_jax.envs.env import EnvironmentFailure

MARKER_VARIABLE = "MINESTUDIO_JAX_ENVIRONMENT"

_START_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 5.0


class ProcessGuard:
    """Kills every process marked with `marker` once this process is gone.

    Attributes:
      marker: prefix, unique to this guard, of the markers of what it watches over.
    Raises:
      EnvironmentFailure: no process can be started.
    """

    def __init__(self) -> None:
        self.marker = f"{uuid.uuid4().hex}:"
        # The guard reads its standard input to the end: that comes when the last holder of the pipe has died. It has
        # a session of its own, so that what stops this program from a terminal does not stop the guard first.
        try:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", marked_processes.__file__, MARKER_VARIABLE, self.marker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise _no_guard(str(error)) from error
        assert starter.stdin is not None
        assert starter.stdout is not None
        self._pipe, self._guard = starter.stdin, starter.stdout
        # It says the guard's number in one piece, or ends without a word.
        in_time = bool(select.select([self._guard], [], [], _START_DEADLINE_S)[0])
        said = self._guard.readline() if in_time else b""
        if not said:
            starter.kill()
            self._pipe.close()
            self._guard.close()
        starter.wait()
        if not said:
            raise _no_guard("its starter failed, see above" if in_time else f"nothing came in {_START_DEADLINE_S:g} s")
        self._pid = int(said)

    def close(self) -> None:
        """Kills whatever is marked and ends the guard; harmless if called twice."""
        marked_processes.kill_marked(MARKER_VARIABLE, self.marker)
        if self._guard.closed:
            return
        self._pipe.close()
        if not select.select([self._guard], [], [], _STOP_DEADLINE_S)[0]:  # its end of the pipe closes when it ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._guard.close()


def _no_guard(why: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"the process that ends environments with their worker cannot be started ({why}); free memory, processes or "
        "file descriptors"
    )
