"""Independent random streams from one root seed."""

from __future__ import annotations

import zlib

import numpy as np


def derived_seed(root: int, *path: str | int) -> int:
    """A 31-bit seed for the stream named by `path`; different paths give independent streams.

    Args:
      root: the run's seed.
      path: for example `"sampling", worker_id`.
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in path]
    return int(np.random.SeedSequence(root, spawn_key=words).generate_state(1)[0]) & 0x7FFFFFFF
