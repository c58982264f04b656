"""The two files by which a living run is watched and steered: status.json and control.json in its directory.

They work wherever the directory can be seen, on a shared file system too: each is written under another name and then
renamed, so nobody reads half a file. The run writes status.json about once a second; whoever wants something of it
writes control.json, which the run takes away, and finds the answer in the next status.json, by the command's id.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

STATUS, _CONTROL = "status.json", "control.json"


def whereabouts() -> dict[str, Any]:
    """Who writes: host, process, and the space of process numbers in which that number means something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_space": f"{boot.read_text().strip() if boot.exists() else ''} {os.readlink('/proc/self/ns/pid')}",
    }


def is_known_dead(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status is certainly gone; nothing is known of other hosts."""
    if status["state"] in ("ended", "failed"):
        return True
    if status["pid_space"] != whereabouts()["pid_space"]:
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def write_status(run_dir: Path, status: dict[str, Any]) -> None:
    """Replaces status.json."""
    _write(run_dir / STATUS, status)


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """The last status; None if there never was one."""
    return _read(run_dir / STATUS)


def give_command(run_dir: Path, command: dict[str, Any], deadline: float) -> str | None:
    """Leaves a command for the run.

    Args:
      run_dir: of the run.
      command: what it shall do.
      deadline: `time.monotonic()` until which another command, not yet taken, is waited for.
    Returns:
      The command's id; None if another one was in the way.
    """
    while (run_dir / _CONTROL).exists():
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    name = uuid.uuid4().hex
    _write(run_dir / _CONTROL, {"id": name, **command})
    return name


def take_command(run_dir: Path) -> dict[str, Any] | None:
    """The command that waits, which does so no longer; None if there is none."""
    path = run_dir / _CONTROL
    command = _read(path)
    if command is not None:
        path.unlink(missing_ok=True)
    return command


def take_back(run_dir: Path, name: str) -> None:
    """Removes a command that nobody took, so that no later run does."""
    path = run_dir / _CONTROL
    command = _read(path)
    if command is not None and command.get("id") == name:
        path.unlink(missing_ok=True)


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
