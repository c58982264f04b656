"""A place for metrics that takes five seconds for each record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RECORD_S = 5.0


class SlowSink:
    """Takes its time over each record."""

    def write(self, record: Mapping[str, Any]) -> None:
        del record
        time.sleep(_RECORD_S)

    def close(self) -> None:
        pass


def make(run_dir: Path, config: Mapping[str, Any]) -> SlowSink:
    del run_dir, config
    return SlowSink()
