"""How large a private Ray's object store is, that an iteration must fit into the buffer, and what Ray must have."""

from __future__ import annotations

import dataclasses
import re
import socket

import pytest
import ray

from minestudio_jax.config import Config, ConfigError, ReplayConfig, RolloutConfig, RunConfig
from minestudio_jax.run import ray_cluster, ray_launcher
from minestudio_jax.run.ray_experience import RayExperience

GIB = 2**30


def stored(max_gib=0.0, **run):
    return ray_cluster.object_store_bytes(Config(run=RunConfig(**run), replay=ReplayConfig(max_gib=max_gib)))


def test_the_object_store_is_sized_by_the_buffers_budget_unless_it_is_said(monkeypatch):
    monkeypatch.setattr(ray_cluster.shutil, "disk_usage", lambda _: type("", (), {"free": 10 * GIB}))
    assert stored() is None
    assert stored(max_gib=2.0) == 3 * GIB
    assert stored(max_gib=0.001) == 128 * 2**20, "Ray has a least size of its own"
    assert stored(max_gib=100.0) == 10 * GIB, "what shared memory has; the rest is spilled"
    assert stored(max_gib=2.0, object_store_gib=5.0) == 5 * GIB
    assert stored(max_gib=2.0, ray_address="auto") is None


def test_an_object_store_beyond_shared_memory_is_refused():
    config = Config(run=RunConfig(object_store_gib=1e6))
    with pytest.raises(ConfigError, match=r"run\.object_store_gib=1e\+06 does not fit into /dev/shm"):
        ray_cluster.start_ray(config)


def test_an_iteration_that_does_not_fit_into_the_budget_is_refused():
    config = Config(replay=ReplayConfig(max_gib=0.01))
    with pytest.raises(ConfigError, match=r"an iteration's \d+ fragments take .* GiB, replay.max_gib=0.01"):
        RayExperience.check(config, 1)
    RayExperience.check(dataclasses.replace(config, replay=ReplayConfig(max_gib=8.0)), 1)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Failed to connect to Ray cluster"),  # so Ray says it of a missing token
        RuntimeError("Version mismatch"),
        ray.exceptions.AuthenticationError("no authentication token was found"),
    ],
)
def test_a_cluster_that_lets_nobody_in_is_one_clear_error(monkeypatch, error):
    def refuse(**settings):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for join in (lambda: ray_cluster.start_ray(Config(run=RunConfig(ray_address=address))),
                     lambda: ray_cluster.join_ray(address)):  # fmt: skip
            with pytest.raises(
                ConfigError, match=f"{address}'.*{re.escape(str(error))}.*RAY_AUTH_MODE=token.*{ray.__version__}"
            ):
                join()


def test_without_ray_train_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(ray_launcher, "_NEEDED", ("no_such_module",))
    with pytest.raises(ConfigError, match=r"no_such_module for it: install minestudio_jax\[multihost\]"):
        ray_launcher.launch(Config())


def test_workers_need_their_share_of_one_node():
    def lack(*nodes, **rollout):
        return ray_cluster._lack(nodes, RolloutConfig(**rollout), "the cluster")

    six = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert lack(*six, num_rollout_workers=2, num_cpus_per_worker=3) == ""
    assert lack({"CPU": 0.3}, num_rollout_workers=3, num_cpus_per_worker=0.1) == ""
    assert lack({}, num_rollout_workers=3, num_cpus_per_worker=0) == ""
    assert lack(*six, num_rollout_workers=4, num_cpus_per_worker=2) == (
        "the rollout workers ask for 8 CPUs (rollout.num_rollout_workers=4 x rollout.num_cpus_per_worker=2), "
        "the cluster has 6"
    )
    assert lack(*six, num_rollout_workers=3, num_cpus_per_worker=2) == (
        "the cluster has room for 2 of rollout.num_rollout_workers=3 workers of rollout.num_cpus_per_worker=2, each of "
        "which needs that on one node"
    )
    apart = [{"CPU": 4.0}, {"GPU": 1.0}]
    assert "room for 0 of" in lack(*apart, num_rollout_workers=1, num_cpus_per_worker=1, num_gpus_per_worker=1)
