"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compilation import QUICK_COMPILATION
from tests.run.programs import Program

# Before JAX is imported anywhere, for this process and all that it starts: tests run on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.update(QUICK_COMPILATION)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_configure(config: pytest.Config) -> None:
    """The suite's processes, and the programs they start, share what they have compiled; the next suite begins anew."""
    if not hasattr(config, "workerinput"):
        config.stash[_CACHE] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-for-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


_CACHE = pytest.StashKey[str]()

# Files that take a minute and more, the longest first: the suite's processes take them first, so that at the end none is
# left alone with one.
_LONG_FILES = (
    "run/test_training_run.py",
    "run/test_hosts.py",
    "run/test_vpt_run.py",
    "learning/test_learning.py",
    "trainer/test_update.py",
    "policies/test_vpt_golden.py",
    "chaos/test_chaos.py",
    "chaos/test_node_death.py",
    "trainer/test_sharding.py",
    "trainer/test_ppo_trainer.py",
    "envs/voxel/test_world.py",
    "rollout/test_rollout_manager.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files; the tests of a file stay in theirs."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, name in enumerate(_LONG_FILES) if path.endswith(name)), len(_LONG_FILES))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _no_program_outlives_its_test() -> Iterator[None]:
    """One whose test failed would slow all that follow. What fixtures of wider scope start, they end."""
    before = set(Program.started)
    yield
    for program in set(Program.started) - before:
        program.end()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the numbers from the reference implementations."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def client_python() -> str:
    """An interpreter that has the real client of Minecraft's engine, without the engine."""
    python = os.environ.get("MINESTUDIO_JAX_TEST_CLIENT", "")
    if not python:
        pytest.skip("MINESTUDIO_JAX_TEST_CLIENT names no interpreter with MineRL's client; CONTRIBUTING.md says how to")
    subprocess.run([python, "-c", "import gym, lxml, minestudio, numpy"], check=True)
    return python


@pytest.fixture(scope="module", autouse=True)
def _compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules marked `optimized` are compiled as users' programs are."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    import jax
    from jax._src import compiler

    # XLA reads its flags once in a process; only what accompanies a compilation still changes them.
    options_of = compiler.get_compile_options

    def with_emitters(*args: Any, env_options_overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        overrides = {"xla_cpu_use_fusion_emitters": True, **(env_options_overrides or {})}
        return options_of(*args, env_options_overrides=overrides, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", with_emitters)
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", True)
