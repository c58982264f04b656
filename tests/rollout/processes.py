"""What tests of processes need to know of the operating system."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minestudio_jax.rollout.process_guard import MARKER_VARIABLE

# Whoever runs the tests on a slow or busy machine may give everything so many times as long.
PATIENCE = float(os.environ.get("MINESTUDIO_JAX_TEST_PATIENCE", "1"))


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether it comes true within the seconds given, times PATIENCE."""
    give_up = time.monotonic() + PATIENCE * timeout_s
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def marked_pids(marker: str) -> set[int]:
    """Processes of environments whose marker begins so."""
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if f"{MARKER_VARIABLE}={marker}".encode() in Path(f"/proc/{entry}/environ").read_bytes() and is_alive(
                int(entry)
            ):
                found.add(int(entry))
        except OSError:
            continue
    return found


def shared_memory() -> set[str]:
    """Names of the kind that environments could leave behind; policy versions and Ray's objects have others."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "sem."))}


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def children() -> set[int]:
    """Processes of this one, zombies too."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text().split()}
    return found


def sleeper() -> subprocess.Popen[bytes]:
    """A process that is none of anyone's business."""
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
