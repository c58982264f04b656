"""Where arrays lie: a mesh of all the learner's devices, and which axis of which array is split over which of its axes.

Batches are split over 'data' and 'fsdp'. What has the shape of parameters (they themselves, the optimiser's moments,
the reference) is split over 'fsdp', so that a device keeps only its part, and large matrices over 'tensor' as well,
along which devices share one part of the batch and each computes with its own part of the matrix. Everything else, and
everything small, is on every device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minestudio_jax.config import TrainerConfig
from minestudio_jax.mesh_shape import mesh_shape
from minestudio_jax.policies.policy import TensorRule

BATCH_AXES = ("data", "fsdp")
_LEAST_SPLIT = 4096  # numbers in an array, below which splitting it saves nothing


def make_mesh(config: TrainerConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices, all of them unless said otherwise, as `trainer.mesh` arranges them.

    Raises:
      ConfigError: it does not fit their number.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config.mesh, len(devices))
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def along_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the leading one unless said otherwise, split as batches are."""
    return NamedSharding(mesh, P(*[None] * axis, BATCH_AXES))


def partition_specs(tree: Any, mesh: Mesh, rules: Sequence[TensorRule]) -> Any:
    """How each leaf of a tree of parameters, or of what contains some, is split.

    The first rule whose pattern is found in a leaf's path splits it over 'tensor'. Of the axes that are left the
    largest that can be divided is split over 'fsdp', if the leaf has 4,096 numbers or more; if there is none, the parts
    that 'tensor' makes are.

    Args:
      tree: of arrays or their shapes.
      mesh: see `make_mesh`.
      rules: the policy's.
    """

    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def spec(path: Any, leaf: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        axes: list[Any] = [None] * len(leaf.shape)
        rule = next((rule for rule in rules if re.search(rule.pattern, name)), None) if tensor > 1 else None
        if rule is not None and leaf.shape[rule.axis] % tensor == 0:
            axes[rule.axis] = "tensor"
        if fsdp > 1 and leaf.size >= _LEAST_SPLIT:
            free = [
                axis for axis, size in enumerate(leaf.shape) if axes[axis] is None and size > 1 and size % fsdp == 0
            ]
            if free:
                axes[max(free, key=lambda axis: leaf.shape[axis])] = "fsdp"
            elif rule is not None and leaf.shape[rule.axis] % (tensor * fsdp) == 0:
                axes[rule.axis] = ("tensor", "fsdp")
        return P(*axes)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, rules: Sequence[TensorRule]) -> Any:
    """The same as shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(tree, mesh, rules))


def with_sharding(tree: Any, sharding: Any) -> Any:
    """Abstract arrays with the sharding they will have.

    Args:
      tree: of arrays or their shapes.
      sharding: one for all, or a tree of them.
    """
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, its: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=its), tree, sharding)
