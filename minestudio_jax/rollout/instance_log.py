"""The logs of environments: what their processes print, through all their lives, and bounded."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_TAIL_LINES = 20
_TAIL_BYTES = 8192
_LOOK_S = 2.0  # how often a LogKeeper looks at the sizes

log = logging.getLogger(__name__)


class InstanceLog:
    """A file that processes append to, and one older file beside it. An environment outlives whatever befalls them.

    Any thread may call anything.

    Args:
      folder: is made by `open` if need be.
      worker_id, env_id: name the file, `env-<worker>-<env>.log`; the older one has `.1` behind that.
      max_bytes: of each of the two, whenever `bound` is called.
    """

    def __init__(self, folder: Path, worker_id: int, env_id: int, max_bytes: int) -> None:
        self.path = folder / f"env-{worker_id:02d}-{env_id:03d}.log"
        self._older = self.path.with_suffix(".log.1")
        self._max_bytes = max_bytes
        self._life_begin = 0
        self._warned = False
        self._lock = threading.Lock()

    def open(self) -> BinaryIO:
        """The file for the output of a new life.

        Raises:
          OSError: it cannot be opened or made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bound()
        with self._lock:
            file = self.path.open("ab")
            self._life_begin = file.tell()
        return file

    def bound(self) -> None:
        """Moves a log that has grown too large to the older file, of which only the end is kept.

        Its processes write on meanwhile, and begin a new file by that: they have it open for appending. What they write
        in the instant between the last byte's copy and the cut is lost. If it cannot be moved it grows, and the log of
        the run says so once.
        """
        try:
            with self._lock:
                self._bound()
        except FileNotFoundError:
            return
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s cannot be kept to %d bytes and grows: %s; is the disk full?", self.path, self._max_bytes, error
                )

    def _bound(self) -> None:
        size = os.stat(self.path).st_size
        if size <= self._max_bytes:
            return
        partial = self._older.with_suffix(".partial")
        with self.path.open("r+b") as file:
            file.seek(size - self._max_bytes)
            partial.write_bytes(file.read()[-self._max_bytes :])
            os.replace(partial, self._older)  # there is always one to read
            file.truncate(0)
        self._life_begin = 0

    def tail(self) -> str:
        """The last lines of the present life; "" if they cannot be read."""
        try:
            with self._lock, self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(min(size, max(self._life_begin, size - _TAIL_BYTES)))
                text = file.read(_TAIL_BYTES).decode(errors="replace")
        except OSError as error:
            log.debug("%s cannot be read: %s", self.path, error)
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


class LogKeeper:
    """A thread that bounds logs while their processes write: an episode may be endless, and a start full of words.

    Args:
      logs: of all environments of a pool.
    """

    def __init__(self, logs: Sequence[InstanceLog]) -> None:
        self._logs = logs
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, unless the disk holds it up; a last look is taken before."""
        self._closed.set()
        self._thread.join(_LOOK_S)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._closed.wait(_LOOK_S)
            for one in self._logs:
                one.bound()
