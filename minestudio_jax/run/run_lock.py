"""The lock that keeps two processes out of one run directory."""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from pathlib import Path
from typing import Any, TextIO

from minestudio_jax.config import ConfigError
from minestudio_jax.run.control_files import STATUS, read_status, whereabouts

NAME = "run.lock"
ABANDONED_AFTER_S = 300.0  # a run writes its status every second, and file systems may show it a minute late

log = logging.getLogger(__name__)


def hold(run_dir: Path) -> TextIO:
    """The lock of a directory, held until it is closed or the process ends.

    A file server may keep the lock of a machine that vanished: with NFSv3 nothing tells it. So what a process on
    another machine holds, or one before this machine's last boot, is given up once its run has shown no sign of life
    for ABANDONED_AFTER_S.

    Raises:
      ConfigError: another process holds it.
    """
    path = run_dir / NAME
    lock = open(path, "a")  # noqa: SIM115 (held until closed)
    if _is_ours(lock):
        return lock
    if os.fstat(lock.fileno()).st_ino == path.stat().st_ino and _is_abandoned(run_dir):
        aside = path.with_name(f"{NAME}.abandoned-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        lock.close()
        lock = open(path, "a")  # noqa: SIM115 (held until closed)
        if _is_ours(lock):
            log.warning("%s was held by a machine that is gone: it is %s now", path, aside.name)
            return lock
    lock.close()
    status = read_status(run_dir)
    who = f"process {status['pid']} on {status['host']}" if status else "another process"
    remedy = "stop that run or name another directory"
    if status and not _is_of_this_machine(status):
        remedy += f"; if the machine is gone, the directory is free {ABANDONED_AFTER_S:g} s after its last sign of life"
    raise ConfigError(f"run.dir={str(run_dir)!r} is in use by {who}: {remedy}")


def _is_ours(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_abandoned(run_dir: Path) -> bool:
    """Whether nothing but the file server still knows of who holds the lock."""
    status = read_status(run_dir)
    if not status or _is_of_this_machine(status):  # there the lock goes with its process
        return False
    now = run_dir / f"{NAME}.{uuid.uuid4().hex[:8]}.partial"  # by the file server's clock
    now.touch()
    silent_s = now.stat().st_mtime - (run_dir / STATUS).stat().st_mtime
    now.unlink()
    return silent_s > ABANDONED_AFTER_S


def _is_of_this_machine(status: dict[str, Any]) -> bool:
    """Whether it was written here, since the last boot."""
    boot, _, _ = whereabouts()["pid_space"].partition(" ")
    return bool(status["pid_space"].partition(" ")[0] == boot)
