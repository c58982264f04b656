"""Sees to it that no environment's process survives, however it hides and however its parent dies.

A process group catches most of an environment's processes, but simulators start some in sessions of their own, and a
stopped process cannot end itself when its parent is gone. So every environment carries a marker in the process's
initial environment variables, which all its descendants inherit, and `kill_marked` finds them by it (Linux: /proc).
A `ProcessGuard` is a tiny process that waits for the death of the one that made it and then kills by that marker. It is
no child of that one: when Ray kills an actor it kills the children of the actor's process first.

Run as a program, this file is the guard: standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

MARKER_VARIABLE = "MINESTUDIO_JAX_ENVIRONMENT"

_MAX_PASSES = 100
_STOP_DEADLINE_S = 5.0


def kill_marked(marker: str) -> None:
    """Sends SIGKILL to every process whose marker begins with `marker`, except this one."""
    signalled: set[int] = set()
    # Processes may be born while /proc is read, but not of a killed one: a pass that finds nothing new is the last.
    for _ in range(_MAX_PASSES):
        new = {pid for pid in marked_processes(marker) if pid not in signalled}
        if not new:
            return
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signalled |= new


def marked_processes(marker: str) -> Iterator[int]:
    """Every process whose marker begins with `marker`, except this one."""
    pattern = f"\0{MARKER_VARIABLE}={marker}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            # Some have just ended, or are another user's. A dead one's environment is empty.
            with contextlib.suppress(OSError):
                if pattern in b"\0" + Path(f"/proc/{entry}/environ").read_bytes():
                    yield int(entry)


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
            [sys.executable, "-I", "-S", __file__, self.marker],
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
        kill_marked(self.marker)
        if self._guard.closed:
            return
        self._pipe.close()
        if not select.select([self._guard], [], [], _STOP_DEADLINE_S)[0]:  # its end of the pipe closes when it ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._guard.close()


def main() -> None:
    if pid := os.fork():
        print(pid, flush=True)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])


if __name__ == "__main__":
    main()
