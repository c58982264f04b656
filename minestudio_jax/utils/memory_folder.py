"""Folders in memory (Linux: /dev/shm) that do not stay behind, even after a kill."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "minestudio_jax-"


def free_bytes(parent: Path = SHARED_MEMORY) -> int:
    """Room in memory for files; 0 where there is no such file system."""
    return shutil.disk_usage(parent).free if parent.is_dir() else 0


class MemoryFolder:
    """A new folder, locked while this process lives and removed by `close`.

    What processes that were killed have left is removed when the next folder is made.

    Args:
      parent: where it is made.
    Raises:
      OSError: it cannot be made.
    """

    def __init__(self, parent: Path = SHARED_MEMORY) -> None:
        _remove_abandoned(parent)
        name = f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"
        new, self.path = parent / f".{name}", parent / name
        new.mkdir(mode=0o700)
        # Locked before it gets the name under which others look.
        self._lock = os.open(new, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path)

    def close(self) -> None:
        """Removes it with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or just gone
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(lock)
