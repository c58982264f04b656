from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.trainer.publisher import KEPT_VERSIONS, ParamPublisher
from minestudio_jax.utils import policy_store

ABSTRACT = {"w": jax.ShapeDtypeStruct((4,), np.float32)}


def params(version):
    return {"w": jnp.full(4, version, jnp.float32)}


def test_a_version_is_told_only_when_it_is_complete_and_holds_its_parameters(tmp_path):
    told = []
    publisher = ParamPublisher(
        tmp_path, lambda version, path: told.append((version, policy_store.load_version(path, ABSTRACT)))
    )
    publisher.publish(3, params(3))
    assert publisher.flush(30.0)
    publisher.close()
    ((version, loaded),) = told
    assert version == 3
    np.testing.assert_array_equal(loaded["w"], np.full(4, 3))


def test_parameters_may_be_donated_as_soon_as_publish_returns(tmp_path):
    told = []
    publisher = ParamPublisher(tmp_path, lambda version, path: told.append(policy_store.load_version(path, ABSTRACT)))
    given = params(1)
    publisher.publish(1, given)
    given["w"].delete()
    publisher.close(30.0)
    np.testing.assert_array_equal(told[0]["w"], np.ones(4))


def test_the_learner_never_waits_and_the_newest_version_wins(tmp_path):
    told, blocked, go_on = [], threading.Event(), threading.Event()

    def slow(version, path):
        told.append(version)
        blocked.set()
        assert go_on.wait(30.0)

    publisher = ParamPublisher(tmp_path, slow)
    publisher.publish(1, params(1))
    assert blocked.wait(30.0)
    for version in range(2, 7):
        publisher.publish(version, params(version))
    assert not publisher.flush(0.05)
    go_on.set()
    assert publisher.flush(30.0)
    publisher.close()
    assert told == [1, 6]


def test_only_the_newest_versions_are_kept(tmp_path):
    publisher = ParamPublisher(tmp_path, lambda version, path: None)
    for version in range(1, 7):
        publisher.publish(version, params(version))
        assert publisher.flush(30.0)
    publisher.close()
    assert policy_store.list_versions(tmp_path) == [4, 5, 6]
    assert KEPT_VERSIONS == 3


def test_a_failure_to_write_is_told_to_the_learner(tmp_path):
    (tmp_path / "versions").write_text("in the way")
    publisher = ParamPublisher(tmp_path / "versions", lambda version, path: None)
    publisher.publish(1, params(1))
    with pytest.raises(RuntimeError, match="disk full or read-only"):
        publisher.flush(30.0)
    with pytest.raises(RuntimeError, match=str(tmp_path / "versions")):
        publisher.publish(2, params(2))
    publisher.close()


def test_the_best_version_outlives_its_number(tmp_path):
    publisher = ParamPublisher(tmp_path, lambda version, path: None)
    for version in range(1, 3 + KEPT_VERSIONS):
        publisher.publish(version, params(version))
        if version == 2:
            publisher.keep_as_best()
        assert publisher.flush(30.0)
    publisher.close()
    assert policy_store.list_versions(tmp_path) == list(range(3, 3 + KEPT_VERSIONS))
    found = policy_store.load_version(policy_store.best_path(tmp_path), ABSTRACT)
    np.testing.assert_array_equal(found["w"], np.full(4, 2))
    policy_store.keep_as_best(tmp_path, 4)
    found = policy_store.load_version(policy_store.best_path(tmp_path), ABSTRACT)
    np.testing.assert_array_equal(found["w"], np.full(4, 4))
