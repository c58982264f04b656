"""Memory is used again, but never under somebody's hands."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from minestudio_jax.utils.staging import StagingMemory

SHAPE = (8, 1000)


def address(array) -> int:
    return array.__array_interface__["data"][0]


def test_memory_nobody_holds_is_used_again():
    memory = StagingMemory()
    array = memory.empty(SHAPE, np.float32)
    where = address(array)
    assert where % 64 == 0
    del array
    assert address(memory.empty(SHAPE, np.float32)) == where


def test_memory_somebody_holds_is_not():
    """By the array itself, by a part of it, by another look at it."""
    for part in (lambda a: a, lambda a: a[2:4], lambda a: a.reshape(-1), lambda a: a[0, :5]):
        memory = StagingMemory()
        held = part(memory.empty(SHAPE, np.float32))
        where = address(held) - address(held) % 64
        other = memory.empty(SHAPE, np.float32)
        assert not np.shares_memory(held, other)
        del held
        again = memory.empty(SHAPE, np.float32)
        assert address(again) <= where < address(again) + again.nbytes


def test_other_sizes_get_other_memory():
    memory = StagingMemory()
    small = memory.empty((10,), np.int32)
    del small
    assert memory.empty((10,), np.float64).shape == (10,)
    assert memory.empty((), np.bool_).shape == ()
    assert memory.empty((0, 3), np.bool_).size == 0


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("row_bytes", [12, 3 * 2**20])
def test_rows_are_stacked_whole_and_in_order_by_however_many_threads(rows, row_bytes):
    rng = np.random.default_rng(rows)
    leaves = [rng.integers(0, 255, (row_bytes // 12, 3), np.int32) for _ in range(rows)]
    memory = StagingMemory()
    stacked = memory.stacked(leaves)
    np.testing.assert_array_equal(stacked, np.stack(leaves))
    where = address(stacked)
    del stacked
    assert address(memory.stacked(leaves)) == where


def test_a_row_of_another_shape_is_an_error_in_whichever_thread():
    leaves = [np.zeros((1024, 1024), np.float32) for _ in range(7)] + [np.zeros((1024, 1023), np.float32)]
    with pytest.raises(ValueError, match="same shape"):
        StagingMemory().stacked(leaves)


_DEVICES = """
import gc, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from minestudio_jax.utils.staging import StagingMemory

memory = StagingMemory()
for devices in (1, 4):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    on_device = []
    for number in range(20):
        array = memory.empty((8, 1000), np.float32)
        array[:] = number
        on_device.append(jax.device_put(array, sharding))
        if number % 3 == 2:
            del on_device[0]
        del array
        gc.collect()
    values = [float(np.asarray(x)[0, 0]) for x in on_device]
    assert values == sorted(values)[-len(values):] == [float(v) for v in range(20 - len(values), 20)], values
    for x in on_device:
        assert (np.asarray(x) == np.asarray(x)[0, 0]).all()
"""


def test_what_is_on_devices_never_changes():
    """On a CPU the device's array is the memory itself, also in the parts of several devices."""
    command = [sys.executable, "-c", _DEVICES]
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_on_a_cpu_nothing_is_copied():
    memory = StagingMemory()
    array = memory.empty(SHAPE, np.float32)
    array[:] = 1
    on_device = jax.device_put(array)
    assert on_device.unsafe_buffer_pointer() == address(array)
    where = address(array)
    del array
    gc.collect()
    other = memory.empty(SHAPE, np.float32)
    assert address(other) != where
    other[:] = 2
    assert (on_device == 1).all()
    del on_device
    gc.collect()
    assert address(memory.empty(SHAPE, np.float32)) == where
