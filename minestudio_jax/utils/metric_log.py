"""MetricLog: metrics.jsonl, and the sinks besides it, none of which can hold up or end the run."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minestudio_jax.utils.metrics import BackgroundJsonLines, finite
from minestudio_jax.utils.sinks import SinkFactory

QUEUED_RECORDS = 200  # that a sink may be behind
FAILURES_IN_A_ROW = 10  # after which a sink is given up
CLOSE_DEADLINE_S = 5.0

log = logging.getLogger(__name__)


class SinkThread:
    """Feeds one sink from a thread of its own; what it is too slow for, or fails at, is dropped and counted.

    The first failure of a row is logged. After FAILURES_IN_A_ROW, or if it cannot be made, the sink is given up.

    Args:
      name: as logger.sinks has it.
      factory: called in the thread, as a server may be asked for the first time then.
      run_dir, config: its arguments.
    """

    def __init__(self, name: str, factory: SinkFactory, run_dir: Path, config: dict[str, Any]) -> None:
        self.dropped = 0
        self._name, self._factory, self._run_dir, self._config = name, factory, run_dir, config
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUED_RECORDS)
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Hands over a record and returns."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self, deadline_s: float) -> None:
        """Lets it finish what is waiting, and goes on without it at the deadline."""
        ended = time.monotonic() + deadline_s
        try:
            self._waiting.put(None, timeout=deadline_s)
            self._thread.join(max(0.0, ended - time.monotonic()))
        except queue.Full:
            pass  # told below, as the thread lives
        if self._thread.is_alive():
            log.warning(
                "logger.sinks: %r did not finish within %g s and lacks about %d records; metrics.jsonl has all",
                self._name,
                deadline_s,
                self._waiting.qsize(),
            )

    def _run(self) -> None:
        try:
            sink = self._factory(self._run_dir, self._config)
        except Exception as error:
            self._give_up("cannot be opened", error)
            return
        failures = 0
        while (record := self._waiting.get()) is not None:
            try:
                sink.write(record)
                failures = 0
            except Exception as error:
                self.dropped += 1
                failures += 1
                if failures == FAILURES_IN_A_ROW:
                    self._give_up(f"failed {failures} times in a row", error)
                    break
                if failures == 1:
                    self._say("failed and is tried again with the next record", error)
        try:
            sink.close()
        except Exception as error:
            self._say("could not be closed", error)

    def _give_up(self, what: str, error: Exception) -> None:
        self._say(f"{what} and is given up for this run; start the run again once it works", error)
        threading.Thread(target=self._discard, name=f"discards-{self._name}", daemon=True).start()

    def _discard(self) -> None:
        while self._waiting.get() is not None:
            self.dropped += 1

    def _say(self, what: str, error: Exception) -> None:
        log.warning(
            "logger.sinks: %r %s (%s: %s); metrics.jsonl has every record",
            self._name,
            what,
            type(error).__name__,
            error,
        )


class MetricLog:
    """One record an iteration, to metrics.jsonl without loss and to every sink as far as it keeps up.

    Args:
      path: of metrics.jsonl.
      factories: of the sinks, from `sinks.sink_factories`.
      run_dir, config: what they are given.
    """

    def __init__(self, path: Path, factories: Mapping[str, SinkFactory], run_dir: Path, config: dict[str, Any]) -> None:
        self._file = BackgroundJsonLines(path)
        self._sinks = [SinkThread(name, factory, run_dir, config) for name, factory in factories.items()]

    @property
    def dropped_records(self) -> int:
        """Records that some sink did not get, since the start of this process."""
        return sum(sink.dropped for sink in self._sinks)

    def write(self, record: Mapping[str, Any]) -> None:
        """Hands over a record and returns."""
        self._file.write(record)
        for sink in self._sinks:
            sink.write(finite(record))

    def close(self) -> None:
        """Finishes the file, then the sinks, which get a few seconds together."""
        self._file.close()
        ended = time.monotonic() + CLOSE_DEADLINE_S
        for sink in self._sinks:
            sink.close(max(0.1, ended - time.monotonic()))
