"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before JAX is imported anywhere: tests run on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the numbers from the reference implementations."""
    return Path(__file__).parent / "golden"
