"""What needs Ray and nothing that runs in it: versions in its object store, and the settings of its workers' heaps."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest
import ray

from minestudio_jax.config import Config, RolloutConfig
from minestudio_jax.rollout import policy_loading
from minestudio_jax.rollout.env_worker import child_environment
from minestudio_jax.rollout.heap_variables import HEAP_VARIABLES
from minestudio_jax.rollout.placement import worker_options
from minestudio_jax.rollout.policy_loading import pack
from minestudio_jax.run import ray_cluster
from minestudio_jax.utils import memory_folder, policy_store
from minestudio_jax.utils.staging import StagingMemory

SHAPES = {name: jax.ShapeDtypeStruct((100, 300), np.float32) for name in "abc"}


@pytest.fixture(scope="module")
def private_ray():
    """Of a node with settings of its own for memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
        patch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=5")
        patch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
        ray_cluster.start_ray(Config())
        yield
        ray_cluster.stop_ray()


def in_memory():
    return sorted(memory_folder.SHARED_MEMORY.glob("*minestudio_jax-*"))


@pytest.mark.parametrize("free", [10**12, 0], ids=["memory", "disk"])
def test_a_version_goes_through_the_object_store_and_leaves_no_file(tmp_path, private_ray, monkeypatch, free):
    monkeypatch.setattr(memory_folder, "free_bytes", lambda: free)
    params = {name: np.random.default_rng(i).standard_normal((100, 300), np.float32) for i, name in enumerate(SHAPES)}
    where = pack(policy_store.save_version(tmp_path, 1, params))
    policy_store.remove_versions(tmp_path, keep=0)
    before = in_memory()
    loaded = policy_loading.load(where, SHAPES, StagingMemory())
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert in_memory() == before


def test_a_version_goes_through_the_disk_when_memory_is_full_though_it_seemed_to_have_room(
    tmp_path, private_ray, monkeypatch
):
    """Workers of a node look for room at the same time: /dev/full stands for the room that another one took."""
    where = pack(policy_store.save_version(tmp_path, 1, {"a": np.full((100, 300), 7, np.float32)}))
    write, folders = policy_loading._load_files, []

    def write_to_full_memory(files, folder, *rest):
        folders.append(folder)
        if folder.parent == memory_folder.SHARED_MEMORY:
            smallest = folder / min((name for name in files if files[name].size), key=lambda name: files[name].size)
            smallest.parent.mkdir(parents=True, exist_ok=True)
            smallest.symlink_to("/dev/full")
        return write(files, folder, *rest)

    monkeypatch.setattr(memory_folder, "free_bytes", lambda: 10**12)
    monkeypatch.setattr(policy_loading, "_load_files", write_to_full_memory)
    before = in_memory()
    assert (policy_loading.load(where, {"a": SHAPES["a"]}, StagingMemory())["a"] == 7).all()
    assert [folder.parent == memory_folder.SHARED_MEMORY for folder in folders] == [True, False]
    assert not any(folder.exists() for folder in folders)
    assert in_memory() == before


def test_who_acts_is_as_urgent_as_the_learner(private_ray):
    def priority():
        return os.getpriority(os.PRIO_PROCESS, 0)

    workers = ray.get(ray.remote(priority).options(**worker_options(RolloutConfig(), None)).remote())
    assert workers == priority()


def heap(variables):
    return {name: variables[name] for name in HEAP_VARIABLES if name in variables}


def test_a_workers_heap_settings_are_none_of_its_environments(private_ray):
    """They get those of the node."""

    def variables():
        return dict(os.environ), child_environment("m", foreign=True)

    workers, environments = ray.get(ray.remote(variables).options(**worker_options(RolloutConfig(), None)).remote())
    tunables = HEAP_VARIABLES["GLIBC_TUNABLES"].replace("${GLIBC_TUNABLES}", "glibc.malloc.tcache_count=5")
    assert heap(workers) == {**HEAP_VARIABLES, "GLIBC_TUNABLES": tunables}
    assert heap(environments) == {"MALLOC_MMAP_THRESHOLD_": "1000000", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=5"}
    assert not [name for name in environments if name.startswith("BEFORE_")]


def test_heap_settings_of_the_user_stay_where_there_is_no_worker_of_ray(monkeypatch):
    for name in HEAP_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    users = {"MALLOC_TRIM_THRESHOLD_": HEAP_VARIABLES["MALLOC_TRIM_THRESHOLD_"]}
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", users["MALLOC_TRIM_THRESHOLD_"])
    assert heap(child_environment("m", foreign=True)) == users
