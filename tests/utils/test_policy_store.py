"""Policy versions on disk."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from minestudio_jax.utils import policy_store
from minestudio_jax.utils.memory_folder import MemoryFolder
from minestudio_jax.utils.staging import StagingMemory


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


@pytest.fixture
def memory():
    folder = MemoryFolder()
    yield folder.path
    folder.close()


def test_in_memory_each_array_is_a_file_and_is_read_to_memory_that_is_used_again(memory, tmp_path):
    params = {
        "a": {"kernel": np.arange(6000, dtype=np.float32).reshape(20, 300), "half": np.ones((7, 5), jnp.bfloat16)},
        "n": np.float32(3),
        "many": (np.arange(5), np.zeros((3, 2), np.int32)),
    }
    path = policy_store.save_version(memory, 1, params)
    sizes = [file.stat().st_size for file in path.rglob("*")]
    assert all(leaf.nbytes in sizes for leaf in jax.tree.leaves(params))
    wanted, staging = abstract(params), StagingMemory()
    wanted["a"]["half"] = jax.ShapeDtypeStruct((7, 5), np.float32)
    back = policy_store.load_version(path, wanted, staging)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [leaf.dtype for leaf in jax.tree.leaves(wanted)]
    where = back["a"]["kernel"].ctypes.data
    del back
    again = policy_store.load_version(path, wanted, staging)
    assert again["a"]["kernel"].ctypes.data == where
    assert jax.device_put(again["a"]["kernel"]).unsafe_buffer_pointer() == where
    disk = policy_store.load_version(policy_store.save_version(tmp_path, 1, params), wanted)
    jax.tree.map(np.testing.assert_array_equal, again, disk)


def test_a_file_that_is_cut_short_is_not_taken(memory, params):
    path = policy_store.save_version(memory, 1, params)
    os.truncate(path / "a.kernel" / "0.0", 20)
    with pytest.raises(OSError, match="has 20 bytes, expected 24"):
        policy_store.load_version(path, abstract(params))


def test_what_others_wrote_with_orbax_is_read_however_it_lies(memory, params):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=True)
    handler.save(memory / "theirs", args=ocp.args.PyTreeSave(params))
    handler.close()
    back = policy_store.load_version(memory / "theirs", abstract(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


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
@pytest.mark.parametrize("place", ["memory", "tmp_path"])
def test_a_version_that_is_removed_while_it_is_read_is_read_whole_or_not_at_all(place, request):
    """A worker that is late must neither fail nor act with parameters of which a part is missing."""
    folder = request.getfixturevalue(place)
    shapes = {name: jax.ShapeDtypeStruct((50_000,), np.float32) for name in "abcdefgh"}
    outcomes = {"read": 0, "gone": 0}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)]) as writer:
        while writer.poll() is None:
            for version in policy_store.list_versions(folder)[-1:]:
                try:
                    values = policy_store.load_version(policy_store.version_path(folder, version), shapes)
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
