"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin and Gray 2016 (arXiv:1509.09308), with the points 0, +-1, +-2 and infinity: a tile of 4x4 outputs needs 36
products for each pair of channels instead of 144, after its 6x6 inputs and the kernel have been transformed. The
kernel's transform is worth it when one kernel serves many calls. In float32 results differ from the direct sum by some
1e-5 of their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE = 4  # outputs along an edge
_WINDOW = 6  # inputs along an edge
_KERNEL = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
_INPUT = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]]
)  # fmt: skip
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


@jax.jit
def transform(kernel: jax.Array) -> jax.Array:
    """A kernel [3, 3, I, O] as `convolve` takes it: [36, I, O]."""
    rows = jnp.stack(_combined(_KERNEL, list(kernel)))
    columns = _combined(_KERNEL, [rows[:, b] for b in range(3)])
    return jnp.stack(columns, axis=1).reshape(_WINDOW**2, *kernel.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, transformed: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """Cross-correlation with stride 1 and zero padding that keeps the image size.

    Its gradients are matrix products between transformed windows and tiles as well, so that they too need a quarter of
    the multiplications.

    Args:
      x: [N, H, W, I].
      transformed: [36, I, O], from `transform`.
      precision: of the products.
    Returns:
      [N, H, W, O].
    """
    return _forward(x, transformed, precision)[0]


@partial(jax.jit, static_argnums=2)
def _forward(
    x: jax.Array, transformed: jax.Array, precision: lax.Precision | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    number, height, width, _ = x.shape
    products = lax.dot_general(_windows(x), transformed, (((2,), (1,)), ((0,), (0,))), precision=precision)
    products = products.reshape(_WINDOW, _WINDOW, number, _tiles(height), _tiles(width), -1)
    rows = _in_memory(_combined(_OUTPUT, list(products)))
    tiles = _combined(_OUTPUT, [rows[:, column] for column in range(_WINDOW)])
    return _image(tiles, height, width), (x, transformed)


@partial(jax.jit, static_argnums=0)
def _backward(
    precision: lax.Precision | None, residual: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The steps of `_forward` transposed, from the last to the first.

    The windows are computed again, because they take more than twice the memory of the image.
    """
    x, transformed = residual
    number, height, width, _ = x.shape
    dproducts = _transposed_tiles(dy)
    dtransformed = lax.dot_general(_windows(x), dproducts, (((1,), (1,)), ((0,), (0,))), precision=precision)
    dwindows = lax.dot_general(dproducts, transformed, (((2,), (2,)), ((0,), (0,))), precision=precision)
    dwindows = dwindows.reshape(_WINDOW, _WINDOW, number, _tiles(height), _tiles(width), -1)
    rows = _in_memory(_overlapping(_combined(_INPUT.T, list(dwindows)), axis=2))
    tiles = _overlapping(_combined(_INPUT.T, [rows[:, column] for column in range(_WINDOW)]), axis=3)
    return _image(tiles, height, width), dtransformed


convolve.defvjp(_forward, _backward)


def _tiles(size: int) -> int:
    """How many cover an edge."""
    return -(-size // _TILE)


def _windows(x: jax.Array) -> jax.Array:
    """[N, H, W, I] to the transformed window of every tile, [36, N * tiles, I]."""
    _, height, width, inputs = x.shape
    rows, columns = _tiles(height), _tiles(width)
    x = jnp.pad(x, ((0, 0), (1, 1 + _TILE * rows - height), (1, 1 + _TILE * columns - width), (0, 0)))
    bands = _in_memory(_combined(_INPUT, [_every_fourth(x, 1, start, rows) for start in range(_WINDOW)]))
    windows = _combined(_INPUT, [_every_fourth(bands, 3, start, columns) for start in range(_WINDOW)])
    return jnp.stack(windows, axis=1).reshape(_WINDOW**2, -1, inputs)


def _transposed_tiles(dy: jax.Array) -> jax.Array:
    """[N, H, W, O], the gradient of the image, to that of the products, [36, N * tiles, O]."""
    _, height, width, outputs = dy.shape
    rows, columns = _tiles(height), _tiles(width)
    dy = jnp.pad(dy, ((0, 0), (0, _TILE * rows - height), (0, _TILE * columns - width), (0, 0)))
    bands = _in_memory(_combined(_OUTPUT.T, [_every_fourth(dy, 1, start, rows) for start in range(_TILE)]))
    products = _combined(_OUTPUT.T, [_every_fourth(bands, 3, start, columns) for start in range(_TILE)])
    return jnp.stack(products, axis=1).reshape(_WINDOW**2, -1, outputs)


def _in_memory(terms: Sequence[jax.Array]) -> jax.Array:
    """Stacked, after which a transform's second pass begins: as one, XLA would compute the first anew for each of the
    six rows or columns.
    """
    return lax.optimization_barrier(jnp.stack(terms))


def _overlapping(window: Sequence[jax.Array], axis: int) -> list[jax.Array]:
    """The six rows (or columns) of every window, from one before its tile to one behind, as the tile's four: what
    reaches beyond the tile is added to its neighbours'.
    """
    before, first, second, third, last, behind = window
    return [first + _shifted(behind, axis, 1), second, third, last + _shifted(before, axis, -1)]


def _shifted(x: jax.Array, axis: int, by: int) -> jax.Array:
    """x[..., n - by, ...] along an axis, 0 where there is none."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])


def _image(tiles: Sequence[jax.Array], height: int, width: int) -> jax.Array:
    """The 4 columns of all tiles, each with their 4 rows [4, N, rows, columns, C], to [N, H, W, C]."""
    x = jnp.stack([jnp.stack([column[row] for column in tiles], axis=3) for row in range(_TILE)], axis=2)
    number, rows, _, columns, _, channels = x.shape
    return x.reshape(number, rows * _TILE, columns * _TILE, channels)[:, :height, :width]


def _every_fourth(x: jax.Array, axis: int, start: int, count: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + _TILE * (count - 1) + 1, _TILE, axis)


def _combined(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ terms, without the multiplications by 0, 1 and -1."""
    sums = []
    for row in matrix.tolist():
        parts = [term if factor == 1 else factor * term for factor, term in zip(row, terms, strict=True) if factor]
        sums.append(sum(parts[1:], start=parts[0]))
    return sums
