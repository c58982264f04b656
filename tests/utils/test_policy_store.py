"""Policy versions on disk."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from minestudio_jax.utils import policy_store


@pytest.fixture
def params():
    return {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "n": np.float32(3)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


def test_round_trip_is_exact_and_listing_sees_complete_versions(tmp_path, params):
    for version in (1, 2, 10):
        policy_store.save_version(tmp_path, version, params)
    (tmp_path / "00000011.orbax-checkpoint-tmp-1").mkdir()  # a torn one
    assert policy_store.list_versions(tmp_path) == [1, 2, 10]
    back = policy_store.load_version(policy_store.version_path(tmp_path, 10), abstract(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_removing_keeps_the_newest_or_all_up_to_one(tmp_path, params):
    for version in range(1, 6):
        policy_store.save_version(tmp_path, version, params)
    policy_store.remove_versions(tmp_path, keep=3)
    assert policy_store.list_versions(tmp_path) == [3, 4, 5]
    policy_store.remove_newer_versions(tmp_path, 4)
    assert policy_store.list_versions(tmp_path) == [3, 4]


def test_a_version_of_the_same_number_is_replaced(tmp_path, params):
    policy_store.save_version(tmp_path, 1, params)
    path = policy_store.save_version(tmp_path, 1, {**params, "n": np.float32(4)})
    assert policy_store.load_version(path, abstract(params))["n"] == 4


def test_a_policy_of_other_shapes_is_refused_by_name(tmp_path, params):
    path = policy_store.save_version(tmp_path, 1, params)
    other = {"a": {"kernel": np.zeros((5, 3), np.float32)}, "n": np.float32(3)}
    with pytest.raises(ValueError, match="kernel"):
        policy_store.load_version(path, abstract(other))
    with pytest.raises(FileNotFoundError):
        policy_store.load_version(tmp_path / "00000099", abstract(params))
