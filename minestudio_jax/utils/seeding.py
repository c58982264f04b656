"""Independent random streams from one root seed."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from minestudio_jax.config import Config


def derived_seed(root: int, *path: str | int) -> int:
    """A 31-bit seed for the stream named by `path`; different paths give independent streams.

    Args:
      root: the run's seed.
      path: for example `"sampling", worker_id`.
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in path]
    return int(np.random.SeedSequence(root, spawn_key=words).generate_state(1)[0]) & 0x7FFFFFFF


def with_derived_seed(config: Config, *path: str | int) -> Config:
    """The settings with another root seed; see `derived_seed`."""
    seed = derived_seed(config.run.seed, *path)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
