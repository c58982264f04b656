"""Fixtures of the tests with environments in processes."""

from __future__ import annotations

import os
import subprocess

import pytest

from minestudio_jax.rollout.env_worker import EnvLaunch
from minestudio_jax.rollout.instance_log import InstanceLog
from minestudio_jax.rollout.process_pool import ProcessEnvPool
from tests.rollout.processes import children, marked_pids, shared_memory


@pytest.fixture
def make_pool(tmp_path):
    """Makes pools, closes them, and looks whether anything of them is left."""
    pools, before = [], (children(), shared_memory())

    def make(num_envs=1, seed=0, factory="tests.scripted_env:make", max_failures_per_hour=20, step_deadline_s=10.0,
             worker_id=0, first_index=0, python=None, tasks=None, recycling=None, start_limit=None, settings=None,
             log_max_bytes=2**20, stop=None, **options):  # fmt: skip
        launch = EnvLaunch(
            factory, options, python, 20.0, 10.0, step_deadline_s, worker_id, first_index, **settings or {}
        )
        logs = [InstanceLog(tmp_path, worker_id, env_id, log_max_bytes) for env_id in range(num_envs)]
        pools.append(
            ProcessEnvPool(
                launch, logs, seed, max_failures_per_hour=max_failures_per_hour, tasks=tasks, recycling=recycling,
                start_limit=start_limit, stop=stop,
            )
        )  # fmt: skip
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        pool.close()
    assert (children(), shared_memory()) == before
    assert [pid for pool in pools for pid in marked_pids(pool.marker)] == []


@pytest.fixture(scope="session")
def other_python() -> str:
    """An interpreter such as simulators need: not this one, with a NumPy below 1.24 and nothing of ours."""
    python = os.environ.get("MINESTUDIO_JAX_TEST_PYTHON", "")
    if not python:
        pytest.skip("MINESTUDIO_JAX_TEST_PYTHON names no interpreter with numpy<1.24; CONTRIBUTING.md says how to")
    code = "import numpy, sys; assert sys.version_info >= (3, 8); assert numpy.__version__ < '1.24', numpy.__version__"
    subprocess.run([python, "-c", code], check=True)
    return python
