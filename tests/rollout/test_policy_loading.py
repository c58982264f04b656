"""Versions on their way from a publisher to a worker, both in this process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.rollout import policy_loading
from minestudio_jax.rollout.policy_loading import PolicyLoader
from minestudio_jax.trainer.publisher import ParamPublisher, Publication
from minestudio_jax.utils import policy_store
from tests.rollout.processes import PATIENCE, wait_until

SHAPES = {name: jax.ShapeDtypeStruct((100, 300), np.float32) for name in "abcdefgh"}


def version_of(params):
    """Its number, which is in every element of a version; the test fails if they differ."""
    numbers = {float(leaf.flat[0]) for leaf in params.values()}
    assert len(numbers) == 1
    assert all(np.all(leaf == leaf.flat[0]) for leaf in params.values()), "torn"
    return numbers.pop()


def fail(error):
    raise AssertionError(error)


# When one array cannot be read, Orbax leaves the reads of the others alone and does not look at their errors.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_version_that_is_loaded_is_whole_and_newer_while_others_are_written_and_removed(tmp_path):
    """D-19: Versions come faster than they are read and are removed under their readers, of which one is always late."""
    loaded = [[], []]
    errors, enough = [], 30

    def record(which, version, params):
        loaded[which].append(version)
        assert version_of(params) == version

    loaders = [
        PolicyLoader(SHAPES, lambda version, params, k=k: record(k, version, params), errors.append) for k in (0, 1)
    ]
    offers = []

    def tell(version, path):
        loaders[0].offer(version, path)
        offers.append((version, path))
        if len(offers) > 2:
            loaders[1].offer(*offers[-3])  # the next write removes it

    publisher = ParamPublisher(tmp_path / "kept", Publication(tmp_path / "sent", tell))
    give_up, version = time.monotonic() + 60.0 * PATIENCE, 0
    # Of those that were not offered one is being written, and one waits for it: the others were overtaken.
    while min(map(len, loaded)) < enough or version - len(offers) <= 2:
        assert time.monotonic() < give_up, (loaded, version, offers)
        version += 1
        publisher.publish(version, {name: jnp.full((100, 300), version, jnp.float32) for name in "abcdefgh"})
        publisher.keep()
        time.sleep(0.003)
    assert publisher.flush(30.0)
    publisher.close()
    assert wait_until(lambda: loaded[0] and loaded[0][-1] == version, 30.0)
    for loader in loaders:
        loader.close()
    assert errors == []
    assert len(offers) < version, "the publisher must have been overtaken"
    for versions in loaded:
        assert len(versions) >= enough
        assert versions == sorted(set(versions))


def test_only_the_newest_of_the_waiting_versions_is_read(tmp_path):
    paths = {v: policy_store.save_version(tmp_path, v, {"w": np.full(4, v, np.float32)}) for v in range(1, 6)}
    loaded, reading, go_on = [], threading.Event(), threading.Event()

    def on_loaded(version, params):
        loaded.append((version, float(params["w"][0])))
        reading.set()
        assert go_on.wait(30.0)

    loader = PolicyLoader({"w": jax.ShapeDtypeStruct((4,), np.float32)}, on_loaded, fail)
    loader.offer(2, paths[2])
    assert reading.wait(30.0)
    for version in (3, 5, 4, 1):
        loader.offer(version, paths[version])
    go_on.set()
    assert wait_until(lambda: len(loaded) == 2, 30.0)
    loader.close()
    assert loaded == [(2, 2.0), (5, 5.0)]


def test_a_version_that_is_gone_is_passed_over_and_one_of_another_policy_is_an_error(tmp_path):
    path = policy_store.save_version(tmp_path, 7, {"w": np.zeros(4, np.float32)})
    loaded, errors = [], []
    loader = PolicyLoader(
        {"w": jax.ShapeDtypeStruct((4,), np.float32)}, lambda v, params: loaded.append(v), errors.append
    )
    loader.offer(6, tmp_path / "00000006")
    loader.offer(7, path)
    assert wait_until(lambda: loaded == [7], 30.0)
    loader.close()
    other = PolicyLoader({"w": jax.ShapeDtypeStruct((5,), np.float32)}, lambda v, params: fail(v), errors.append)
    other.offer(7, path)
    assert wait_until(lambda: errors, 30.0)
    assert "does not fit this policy" in str(errors[0])
    other.close()


def test_a_version_that_cannot_be_read_now_is_read_later(tmp_path, monkeypatch):
    path = policy_store.save_version(tmp_path, 7, {"w": np.zeros(4, np.float32)})
    load, attempts, loaded = policy_store.load_version, [], []

    def load_later(path, abstract, memory):
        attempts.append(path)
        if len(attempts) < 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return load(path, abstract, memory)

    monkeypatch.setattr(policy_store, "load_version", load_later)
    monkeypatch.setattr(policy_loading, "_RETRY_PAUSE_S", 0.05)
    loader = PolicyLoader({"w": jax.ShapeDtypeStruct((4,), np.float32)}, lambda v, params: loaded.append(v), fail)
    loader.offer(7, path)
    assert wait_until(lambda: loaded == [7], 30.0)
    loader.close()
    assert len(attempts) == 3


def test_a_collection_does_not_hold_up_acting():
    """In a process of its own: what is frozen stays so."""
    program = """
import gc, sys
import minestudio_jax.rollout.rollout_actor
from minestudio_jax.rollout.policy_loading import let_acting_go_on
before = len(gc.get_objects())
let_acting_go_on()
assert sys.getswitchinterval() < 0.001
assert len(gc.get_objects()) < before / 100, (before, len(gc.get_objects()))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
