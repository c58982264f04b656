"""Records as lines of JSON: metrics.jsonl and episodes.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
        self._file.write(json.dumps({k: _finite(v) for k, v in record.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
