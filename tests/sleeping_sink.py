"""A sink of metrics that takes five seconds for every record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class SleepingSink:
    """Writes down the first record it was given, and sleeps."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "slept"

    def write(self, record: dict[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(f"{record['iteration']}\n")
        time.sleep(5.0)

    def close(self) -> None:
        pass


def make(run_dir: Path, config: dict[str, Any]) -> SleepingSink:
    assert config["logger"]["sinks"] == ["tests.sleeping_sink:make"]
    return SleepingSink(run_dir)
