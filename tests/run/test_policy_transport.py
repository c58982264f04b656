"""Policy versions on their way into Ray's object store, which has no room."""

from __future__ import annotations

import dataclasses
import logging
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import ray
import ray.exceptions

from minestudio_jax.config import Config, PublishConfig, RunConfig
from minestudio_jax.rollout.policy_loading import PackedVersion
from minestudio_jax.run import policy_transport
from minestudio_jax.trainer.publisher import ParamPublisher, PublishFailure
from tests.rollout.processes import wait_until

CONFIG = Config(publish=PublishConfig(transport="object_store"))
POLICY = SimpleNamespace(abstract_params=lambda: {"w": jax.ShapeDtypeStruct((4,), "float32")})


class Store:
    """Ray's object store, which has room once it is said."""

    def __init__(self, error):
        self.error, self.attempts, self.has_room = error, 0, threading.Event()

    def put(self, value):
        self.attempts += 1
        if not self.has_room.is_set():
            raise self.error
        return "reference"


@pytest.fixture(params=[ray.exceptions.ObjectStoreFullError("full"), ray.exceptions.OutOfDiskError("full")])
def store(request, monkeypatch):
    store = Store(request.param)
    monkeypatch.setattr(ray, "put", store.put)
    monkeypatch.setattr(policy_transport, "_reserved_by_ray", lambda: 0.0)
    monkeypatch.setattr(policy_transport, "_FIRST_PAUSE_S", 0.01)
    return store


@pytest.fixture
def publish(tmp_path):
    """Makes a publisher; gives it, what the workers are told, and what ends the run."""
    with ExitStack() as cleanup:

        def make(config=CONFIG):
            told = []
            publication = policy_transport.make_publication(
                config, POLICY, tmp_path, lambda version, where: told.append((version, where)), cleanup
            )
            publisher = ParamPublisher(tmp_path / "kept", publication)
            cleanup.callback(publisher.close, 0.5)
            return publisher, told, cleanup

        yield make


def test_a_version_waits_for_room_while_the_learner_goes_on(store, publish, caplog):
    caplog.set_level(logging.WARNING, "minestudio_jax")
    publisher, told, _ = publish()
    publisher.publish(1, {"w": jnp.ones(4)})
    assert wait_until(lambda: store.attempts > 2, 30.0)
    for version in (2, 3):
        publisher.publish(version, {"w": jnp.ones(4)})
    assert told == []
    store.has_room.set()
    assert publisher.flush(30.0)
    assert told == [(1, PackedVersion("reference")), (3, PackedVersion("reference"))]
    (warning,) = caplog.messages
    assert "policy version 1 waits for room" in warning
    assert "run.object_store_gib" in warning


def test_a_version_without_room_fails_at_the_deadline_with_the_remedy(store, publish):
    config = dataclasses.replace(CONFIG, run=RunConfig(stall_deadline_s=1.0))
    publisher, told, _ = publish(config)
    publisher.publish(1, {"w": jnp.ones(4)})
    with pytest.raises(PublishFailure, match=r"^policy version 1 .*run\.stall_deadline_s=1: lower replay\.max_gib"):
        publisher.flush(30.0)
    assert told == []


def test_nothing_is_stored_once_the_run_is_over(store, publish):
    publisher, told, cleanup = publish()
    publisher.publish(1, {"w": jnp.ones(4)})
    assert wait_until(lambda: store.attempts > 0, 30.0)
    cleanup.pop_all().close()
    assert publisher.flush(30.0), "the thread is free again"
    assert told == []
    assert not store.has_room.is_set()
