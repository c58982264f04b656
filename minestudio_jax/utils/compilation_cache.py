"""Compiled programs kept on disk, so that a run that is continued need not compile them again."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use_compilation_cache(folder: Path) -> Path:
    """Keeps what this process and those it starts compile in `folder`; whoever set JAX's own variable knows better.

    Programs for a CPU use what that very CPU can do: each kind of machine has a folder of its own.

    Returns:
      Where they are kept.
    """
    given = os.environ.get(_VARIABLE)
    if given:
        return Path(given)
    path = folder / f"{platform.machine()}-{_processor_features()}"
    os.environ[_VARIABLE] = str(path)
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def _processor_features() -> str:
    """A few letters that differ between processors of different abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(features.encode()).hexdigest()[:8]
