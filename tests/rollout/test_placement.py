from __future__ import annotations

import os

import pytest
import ray

from minestudio_jax.config import Config, RolloutConfig
from minestudio_jax.rollout.env_worker import child_environment
from minestudio_jax.rollout.heap_variables import HEAP_VARIABLES
from minestudio_jax.rollout.placement import worker_options
from minestudio_jax.run import ray_cluster


def heap(variables):
    return {name: value for name, value in variables.items() if "MALLOC_" in name}


@pytest.fixture
def ray_of_a_node_with_settings(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    ray_cluster.start_ray(Config())
    yield
    ray_cluster.stop_ray()


def test_a_workers_heap_settings_are_none_of_its_environments(ray_of_a_node_with_settings):
    """They get those of the node."""

    def variables():
        return dict(os.environ), child_environment("m", foreign=True)

    workers, environments = ray.get(ray.remote(variables).options(**worker_options(RolloutConfig(), None)).remote())
    assert heap(workers).items() >= HEAP_VARIABLES.items()
    assert heap(environments) == {"MALLOC_ARENA_MAX": "4"}


def test_heap_settings_of_the_user_stay_where_there_is_no_worker_of_ray(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", HEAP_VARIABLES["MALLOC_ARENA_MAX"])
    assert heap(child_environment("m", foreign=True)) == {"MALLOC_ARENA_MAX": HEAP_VARIABLES["MALLOC_ARENA_MAX"]}
