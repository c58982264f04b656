"""Policy versions on disk."""

from __future__ import annotations

import subprocess
import sys

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


WRITER = """
import sys
from pathlib import Path
import numpy as np
from minestudio_jax.utils import policy_store
for version in range(1, 61):
    values = {name: np.full(50_000, version, np.float32) for name in "abcdefgh"}
    policy_store.save_version(Path(sys.argv[1]), version, values)
    policy_store.remove_versions(Path(sys.argv[1]), keep=1)
"""


# When one array cannot be read, Orbax leaves the reads of the others alone and does not look at their errors.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_version_that_is_removed_while_it_is_read_is_read_whole_or_not_at_all(tmp_path):
    """A worker that is late must neither fail nor act with parameters of which a part is missing."""
    shapes = {name: jax.ShapeDtypeStruct((50_000,), np.float32) for name in "abcdefgh"}
    outcomes = {"read": 0, "gone": 0}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        while writer.poll() is None:
            for version in policy_store.list_versions(tmp_path)[-1:]:
                try:
                    values = policy_store.load_version(policy_store.version_path(tmp_path, version), shapes)
                except FileNotFoundError:
                    outcomes["gone"] += 1
                else:
                    outcomes["read"] += 1
                    assert all(np.all(leaf == version) for leaf in values.values())
    assert writer.returncode == 0
    assert all(outcomes.values()), outcomes


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
