"""Arrays over the devices of all hosts, made of what each host has in its memory; nothing crosses between hosts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def rows_of_hosts(sharding: NamedSharding, num_rows: int) -> list[np.ndarray]:
    """Which rows of an array's leading axis lie on each host's devices, int [n] ascending, by host.

    A row lies on several hosts where the mesh has an axis across hosts that does not split the rows.
    """
    rows: list[set[int]] = [set() for _ in range(jax.process_count())]
    device: Any
    for device, (span, *_) in sharding.devices_indices_map((num_rows,)).items():
        rows[device.process_index].update(range(*span.indices(num_rows)))
    return [np.array(sorted(those), np.int64) for those in rows]


def from_rows(tree: Any, rows: np.ndarray, num_rows: int, sharding: NamedSharding) -> Any:
    """Arrays [num_rows, ...] of which each host gives the rows that lie on its devices.

    Args:
      tree: NumPy arrays [n, ...].
      rows: which rows these are, int [n] ascending.
      num_rows: of all hosts.
      sharding: of the leading axis.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(num_rows)
            at = int(np.searchsorted(rows, begin))
            return local[at : at + end - begin]

        return jax.make_array_from_callback((num_rows, *local.shape[1:]), sharding, part)

    return jax.tree.map(place, tree)


def from_whole(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every host has as a whole, NumPy arrays with the same numbers on each, where the sharding says."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(whole: Any) -> jax.Array:
        array = np.asarray(whole)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def gathered(tree: Any) -> Any:
    """Arrays as the first host's NumPy arrays; the others' result is None. All hosts must call it at the same time.

    One array after the other is put together on the devices, so that no device ever holds more than one as a whole.
    """
    first = jax.process_index() == 0

    def whole(array: jax.Array) -> np.ndarray | None:
        if not array.is_fully_replicated:
            assert isinstance(array.sharding, NamedSharding)
            array = _replicate(array.sharding.mesh)(array)
        return np.asarray(array.addressable_data(0)) if first else None

    leaves = [whole(leaf) for leaf in jax.tree.leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves) if first else None


def on_this_host(tree: Any) -> bool:
    """Whether this host could read all arrays by itself."""
    return all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))


@functools.cache
def _replicate(mesh: Any) -> Any:
    """The jitted identity onto all devices of a mesh; the same function each time, so it is compiled once a shape."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
