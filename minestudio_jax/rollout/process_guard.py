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

MARKER_VARIABLE = "MINESTUDIO_JAX_ENVIRONMENT"

_STOP_DEADLINE_S = 5.0


class ProcessGuard:
    """Kills every process marked with `marker` once this process is gone.

    Attributes:
      marker: prefix, unique to this guard, of the markers of what it watches over.
    """

    def __init__(self) -> None:
        self.marker = f"{uuid.uuid4().hex}:"
        # The guard reads its standard input to the end: that comes when the last holder of the pipe has died. It has
        # a session of its own, so that what stops this program from a terminal does not stop the guard first.
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", marked_processes.__file__, MARKER_VARIABLE, self.marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert starter.stdin is not None
        assert starter.stdout is not None
        self._pipe, self._guard = starter.stdin, starter.stdout
        self._pid = int(self._guard.readline())
        starter.wait()

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
