"""Where a loop's time goes."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager


class Stopwatch:
    """Adds up wall seconds by phase; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Counts the time inside the `with` block towards `name`."""
        return _Phase(self, name)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def drain(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        with self._lock:
            seconds, self._seconds = self._seconds, {}
        return seconds


class _Phase(AbstractContextManager[None]):
    # Written out: acting goes through several a step, and a generator costs twice as much.
    __slots__ = ("_name", "_started", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._watch.add(self._name, time.perf_counter() - self._started)
