"""Where arrays lie: a mesh of this process's devices, parameters on all of them, batches split over them."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def data_mesh() -> Mesh:
    """All devices along one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def along_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the leading one unless said otherwise, split over the mesh."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Abstract arrays with the sharding they will have."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
