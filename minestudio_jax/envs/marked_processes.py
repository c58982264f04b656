"""Processes that are found by a mark in their environment variables, which all descendants inherit wherever they hide.

A process group catches most of what a program has started, but some start others in sessions of their own. The
variables are those that a process began with (Linux: /proc).

Run as a program, with a variable and a mark as arguments, this file is a guard: it kills what carries them once its
standard input ends. Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_MAX_PASSES = 100


def kill_marked(variable: str, mark: str) -> None:
    """Sends SIGKILL to every process with an environment variable that begins with `mark`, except this one."""
    signalled = set()
    # Processes may be born while /proc is read, but not of a killed one: a pass that finds nothing new is the last.
    for _ in range(_MAX_PASSES):
        new = {pid for pid in marked_processes(variable, mark) if pid not in signalled}
        if not new:
            return
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signalled |= new


def marked_processes(variable: str, mark: str) -> Iterator[int]:
    """Every process with an environment variable that begins with `mark`, except this one."""
    pattern = f"\0{variable}={mark}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            # Some have just ended, or are another user's. A dead one's variables are empty.
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as variables:
                if pattern in b"\0" + variables.read():
                    yield int(entry)


def main() -> None:
    if pid := os.fork():
        print(pid, flush=True)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
