"""A folder of its own for each Minecraft process, for worlds, logs and options; nobody's worlds are left behind.

Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress

_PREFIX = "minestudio_jax-minecraft-"
_LOCK = "owner.lock"


class WorkFolder:
    """Removed when closed; one whose owner was killed is removed by the next one made beside it.

    Args:
      parent: folder it is made in, and made itself where it is missing; empty: the system's temporary directory.
      index: of the environment, for its name.
      template: folder whose contents it begins with; empty: it begins empty.
    Attributes:
      path: of the folder.
    """

    def __init__(self, parent: str = "", index: int = 0, template: str = "") -> None:
        parent = os.path.abspath(os.path.expanduser(parent) if parent else tempfile.gettempdir())
        os.makedirs(parent, exist_ok=True)
        _remove_abandoned(parent)
        self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{index}-", dir=parent)
        # The lock gets its name when it is held already: a lock that can be taken is nobody's. The kernel gives it up
        # with its owner, whichever way that one ends; no child inherits it.
        unnamed = os.path.join(self.path, f"{_LOCK}.new")
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unnamed, os.path.join(self.path, _LOCK))
        try:
            if template:
                _copy_into(template, self.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Harmless if called twice."""
        if self._lock >= 0:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1


def _copy_into(template: str, folder: str) -> None:
    for entry in os.scandir(template):
        target = os.path.join(folder, entry.name)
        if entry.is_dir():
            shutil.copytree(entry.path, target)
        else:
            shutil.copy2(entry.path, target)


def _remove_abandoned(parent: str) -> None:
    for entry in os.scandir(parent):
        if not entry.name.startswith(_PREFIX):
            continue
        try:
            lock = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR)
        except OSError:  # just being made, just being removed, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(entry.path)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _remove(folder: str) -> None:
    """Everything in the folder, and then the folder with its lock.

    A process that is being killed may still write into it. What is left then keeps the lock, by which the next one
    made beside it finds and removes it.
    """
    with suppress(OSError):  # somebody else was faster, or something cannot be removed
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                os.unlink(entry.path)
        if os.listdir(folder) == [_LOCK]:
            shutil.rmtree(folder, ignore_errors=True)
