"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before JAX is imported anywhere: tests run on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_configure(config: pytest.Config) -> None:
    """The suite's processes, and the programs they start, share what they have compiled; the next suite begins anew."""
    if not hasattr(config, "workerinput"):
        config.stash[_CACHE] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-for-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


_CACHE = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the numbers from the reference implementations."""
    return Path(__file__).parent / "golden"
