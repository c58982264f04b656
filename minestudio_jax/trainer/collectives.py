"""What devices say to each other while they learn: everything that crosses between them in the update is here.

A function that runs `on_shards` sees one device's part of its arguments. It takes the parameters whole (`gathered`),
works on its own part of the batch, and what comes of it is added up once (`summed`): for every optimiser step the bytes
of one all-gather of the parameters and one reduction of the gradient, however many contexts and batches it has. Without
an 'fsdp' axis only the reduction is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minestudio_jax.trainer.sharding import BATCH_AXES


def on_shards(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function`, run by every device on its own part; along 'tensor' the compiler goes on to split the work.

    What is split over 'tensor' reaches the function as if whole: the compiler brings in what lies along 'fsdp', and
    takes it away again (`laid_out`).

    Args:
      mesh: see `trainer.sharding`.
      function: of arrays that are split over 'data' and 'fsdp'.
      in_specs, out_specs: how each argument and result is split over the mesh.
    """
    with_compiler = mesh.shape["tensor"] > 1
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=jax.tree.map(_own, in_specs),
        out_specs=jax.tree.map(_own, out_specs),
        axis_names=set(BATCH_AXES) if with_compiler else set(mesh.axis_names),
        check_vma=False,
    )


def gathered(tree: Any, specs: Any) -> Any:
    """Leaves as they are split by `specs`, whole; to be called `on_shards`."""

    def whole(leaf: jax.Array, spec: P) -> jax.Array:
        axis = _fsdp_axis(spec)
        return leaf if axis is None else lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)

    return jax.tree.map(whole, tree, specs)


def summed(tree: Any, specs: Any) -> Any:
    """Whole leaves added up over all parts of the batch, each device keeping its part of the sum; `on_shards`."""

    def total(leaf: jax.Array, spec: P) -> jax.Array:
        axis = _fsdp_axis(spec)
        if axis is None:
            return _added(leaf, *BATCH_AXES)
        part = lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
        return _added(part, "data")

    return jax.tree.map(total, tree, specs)


def _added(leaf: jax.Array, *axes: str) -> jax.Array:
    """The sum over those axes that have several devices: without any, XLA refuses it beside what it splits itself."""
    several = tuple(axis for axis in axes if lax.axis_size(axis) > 1)
    return lax.psum(leaf, several) if several else leaf


def global_norm(mesh: Mesh, tree: Any, specs: Any) -> jax.Array:
    """L2 norm of all numbers of a tree that is split by `specs`; float32 []."""
    leaves = list(zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True))
    squares = [jnp.sum(jnp.square(leaf)) for leaf, spec in leaves if _fsdp_axis(spec) is None]
    split = [(leaf, spec) for leaf, spec in leaves if _fsdp_axis(spec) is not None]

    def sum_of_squares(parts: list[jax.Array]) -> jax.Array:
        return lax.psum(sum(jnp.sum(jnp.square(part)) for part in parts), "fsdp")

    if split:  # added up before they cross, not one by one
        arrays, their_specs = map(list, zip(*split, strict=True))
        squares.append(on_shards(mesh, sum_of_squares, (their_specs,), P())(arrays))
    return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """The same arrays, whole on every device."""
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, NamedSharding(mesh, P())), tree)


def laid_out(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """The same arrays, split by `specs`."""
    return jax.tree.map(lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec)), tree, specs)


def _own(spec: P) -> P:
    """What of a spec is ours: the compiler has all of what is split over 'tensor'."""
    return P() if any("tensor" in names for names in spec if names) else spec


def _fsdp_axis(spec: P) -> int | None:
    return next((axis for axis, name in enumerate(_own(spec)) if name == "fsdp"), None)
