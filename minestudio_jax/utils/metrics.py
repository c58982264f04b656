"""Records as lines of JSON: metrics.jsonl and episodes.jsonl."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 16  # read at a time from the end of a file

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
    return list(_records(path))


def first_records(path: Path, number: int) -> list[dict[str, Any]]:
    """The first so many of `read_records`, or all if there are fewer; the rest of the file is not read."""
    return list(islice(_records(path), number))


def last_records(path: Path, number: int) -> list[dict[str, Any]]:
    """The last so many of `read_records`, or all if there are fewer; the rest of the file is not read."""
    return list(islice((record for record in newest_records(path) if record is not None), number))[::-1]


def newest_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The last one first, and None for every line that is none; no more of the file is read than is asked for."""
    if path.exists():
        with open(path, "rb") as file:
            for _, line in _lines_from_the_end(file):
                if line:
                    yield _parsed(line)


def rewind(path: Path, key: str, last: float, discarded: Path) -> int:
    """Keeps the records up to a checkpoint, so that a continued run's counters never go back.

    Only what goes is read, however long the file is. It is safe in the other file before it is cut off: what a kill
    in between leaves is in both, and moved again by the next call.

    Args:
      path: the file; made if missing.
      key: field to compare, which never decreases from one record to the next.
      last: greatest value that stays.
      discarded: file that the other records are appended to.
    Returns:
      How many were moved.
    """
    moved = 0
    with open(path, "a+b") as file:
        end = cut = file.seek(0, os.SEEK_END)
        for offset, line in _lines_from_the_end(file):
            record = _parsed(line)
            if record is not None and record[key] <= last:
                break
            cut = offset
            moved += record is not None
        if moved:
            with open(discarded, "a+b") as other:
                _end_line(other)
                file.seek(cut)
                other.writelines(line.rstrip(b"\n") + b"\n" for line in file if _parsed(line) is not None)
                _sync(other)
        if cut < end:
            file.truncate(cut)
            _sync(file)
        _end_line(file)
    return moved


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                record = _parsed(line)
                if record is not None:
                    yield record


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if it is not a whole one."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:  # neither JSON nor, after a power failure, text
        return None
    return record


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every line, the last one first; behind a last newline there is an empty one."""
    begin = file.seek(0, os.SEEK_END)
    line = b""  # as far as it has been read
    while begin > 0:
        size = min(_BLOCK_BYTES, begin)
        begin -= size
        file.seek(begin)
        line, *whole = (file.read(size) + line).split(b"\n")
        offset = begin + len(line) + sum(len(one) + 1 for one in whole)
        for one in reversed(whole):
            offset -= len(one)
            yield offset, one
            offset -= 1
    yield 0, line


def _end_line(file: BinaryIO) -> None:
    """Ends the last line, which a kill may have cut off, so that what is appended begins a line of its own."""
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
