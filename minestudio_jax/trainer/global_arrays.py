"""Arrays over the devices of all hosts, made of what each host has in its memory; nothing crosses between hosts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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


def from_whole(tree: Any, sharding: Any) -> Any:
    """Arrays that every host has as a whole, with the same numbers on each, where the sharding says.

    Args:
      tree: of NumPy arrays.
      sharding: one for all, or a tree of them.
    """

    def place(whole: Any, its: NamedSharding) -> jax.Array:
        if its.is_fully_addressable:
            return jax.device_put(whole, its)
        array = np.asarray(whole)
        return jax.make_array_from_callback(array.shape, its, lambda index: array[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda whole: place(whole, sharding), tree)
    return jax.tree.map(place, tree, sharding)


def readable(tree: Any) -> Any:
    """Arrays as they can be read on every host. All hosts must call it at the same time."""
    return jax.tree.map(lambda leaf: leaf if _readable(leaf) else _replicate(leaf.sharding.mesh)(leaf), tree)


def first_host_has(tree: Any) -> bool:
    """Whether everything lies on devices of the first host; the answer is the same on all hosts."""

    def has(leaf: jax.Array) -> bool:
        its = {
            tuple(span.indices(size)[:2] for span, size in zip(index, leaf.shape, strict=True))
            for device, index in leaf.sharding.devices_indices_map(leaf.shape).items()
            if device.process_index == 0  # type: ignore[attr-defined]
        }
        return sum(math.prod(end - begin for begin, end in part) for part in its) == leaf.size

    return all(has(leaf) for leaf in jax.tree.leaves(tree))


def fetched(tree: Any) -> Any:
    """NumPy arrays of what lies on this host's devices, in parts or as a whole; this host's affair alone."""

    def fetch(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or _readable(leaf):
            return np.asarray(leaf)
        whole = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            whole[shard.index] = np.asarray(shard.data)
        return whole

    if all(not isinstance(leaf, jax.Array) or _readable(leaf) for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)  # all transfers at a time
    return jax.tree.map(fetch, tree)


def each_part(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """Arrays whose parts are `function` of the parts: each device works by itself, so any host may call it at any time.

    Args:
      function: of one device's array, to one of the same shape.
    """

    def apply(leaf: jax.Array) -> jax.Array:
        parts = [function(shard.data) for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

    return jax.tree.map(apply, tree)


def _readable(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


@functools.cache
def _replicate(mesh: Any) -> Any:
    """The jitted identity onto all devices of a mesh; the same function each time, so it is compiled once a shape."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
