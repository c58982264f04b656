"""A place for metrics that takes five seconds for each record."""

from __future__ import annotations

import time


class SlowSink:
    """Writes down which record it was given, and sleeps."""

    def __init__(self, path):
        self._path = path

    def write(self, record):
        with self._path.open("a") as file:
            print(record["iteration"], file=file)
        time.sleep(5)

    def close(self):
        pass


def make(run_dir, config):
    assert config["logger"]["sinks"] == [f"{__name__}:make"]
    return SlowSink(run_dir / "slow")
