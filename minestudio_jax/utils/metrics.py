"""Records as lines of JSON: metrics.jsonl and episodes.jsonl."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class JsonLines:
    """Appends records to a file, each complete on its line once `write` returns.

    Args:
      path: the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a")  # noqa: SIM115 (held until close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; a float that is not finite becomes null."""
        self._file.write(json.dumps(finite(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class BackgroundJsonLines:
    """The same from a thread of its own: writing neither holds anybody up nor fails, and loses nothing.

    While the file cannot be written (a full disk), records wait in memory and are tried again.

    Args:
      path: the file; made if missing.
    """

    _RETRY_S = 2.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held until close)
        self._waiting: deque[bytes] = deque()
        self._condition = threading.Condition()
        self._closed = self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"writes-{path.name}", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Hands over one record and returns; a float that is not finite becomes null."""
        line = (json.dumps(finite(record)) + "\n").encode()
        with self._condition:
            self._waiting.append(line)
            self._condition.notify_all()

    def close(self, deadline_s: float = 30.0) -> None:
        """Writes what is waiting; what cannot be written until the deadline is lost, and the log says how much."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(deadline_s)
        with self._condition:
            if self._waiting:
                log.error("%d records could not be written to %s and are lost", len(self._waiting), self.path)
            self._waiting.clear()
            self._condition.notify_all()

    def _run(self) -> None:
        with self._file:
            self._write_all()

    def _write_all(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                line = self._waiting[0]
            try:
                self._append(line)
            except OSError as error:
                if not self._failed:
                    log.warning(
                        "%s cannot be written (%s): make room; its records wait in memory until then", self.path, error
                    )
                with self._condition:
                    self._failed = True
                    self._condition.wait_for(lambda: not self._waiting, self._RETRY_S)
                continue
            self._failed = False
            with self._condition:
                if self._waiting:  # close may have given up
                    self._waiting.popleft()

    def _append(self, line: bytes) -> None:
        """All of it or nothing."""
        end = self._file.seek(0, 2)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for every float that is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete records; a last line cut off by a crash is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def rewind(path: Path, key: str, last: float, discarded: Path) -> int:
    """Keeps the records up to a checkpoint, so that a continued run's counters never go back.

    Args:
      path: the file.
      key: field to compare.
      last: greatest value that stays.
      discarded: file that the other records are appended to.
    Returns:
      How many were moved.
    """
    records = read_records(path)
    kept = [r for r in records if r[key] <= last]
    gone = [r for r in records if r[key] > last]
    if gone:
        with open(discarded, "a") as file:
            file.writelines(json.dumps(r) + "\n" for r in gone)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(r) + "\n" for r in kept))
    partial.rename(path)
    return len(gone)
