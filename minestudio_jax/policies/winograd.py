"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin and Gray 2016 (arXiv:1509.09308), with the points 0, +-1, +-2 and infinity: a tile of 4x4 outputs needs 36
products for each pair of channels instead of 144, after its 6x6 inputs and the kernel have been transformed. The
kernel's transform is worth it when one kernel serves many calls. In float32 results differ from the direct sum by some
1e-5 of their size.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def transform(kernel: jax.Array) -> jax.Array:
    """A kernel [3, 3, I, O] as `convolve` takes it: [36, I, O]."""
    matrix = jnp.asarray(_KERNEL, kernel.dtype)
    transformed = jnp.einsum("ua,abio,vb->uvio", matrix, kernel, matrix, precision=lax.Precision.HIGHEST)
    return transformed.reshape(_WINDOW**2, *kernel.shape[2:])


def convolve(x: jax.Array, transformed: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """Cross-correlation with stride 1 and zero padding that keeps the image size.

    Args:
      x: [N, H, W, I].
      transformed: [36, I, O], from `transform`.
      precision: of the products.
    Returns:
      [N, H, W, O].
    """
    number, height, width, _ = x.shape
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    x = jnp.pad(x, ((0, 0), (1, 1 + _TILE * rows - height), (1, 1 + _TILE * columns - width), (0, 0)))
    windows = jnp.stack(
        [
            window
            for band in _combined(_INPUT, [_every_fourth(x, 1, start, rows) for start in range(_WINDOW)])
            for window in _combined(_INPUT, [_every_fourth(band, 2, start, columns) for start in range(_WINDOW)])
        ]
    )
    windows = windows.reshape(_WINDOW**2, number * rows * columns, -1)
    products = lax.dot_general(windows, transformed, (((2,), (1,)), ((0,), (0,))), precision=precision)
    products = products.reshape(_WINDOW, _WINDOW, number, rows, columns, -1)
    # Tiles: a list of 4 rows of 4 images [N, rows, columns, O], one for each place in a tile.
    tiles = [_combined(_OUTPUT, list(band)) for band in _combined(_OUTPUT, list(products))]
    y = jnp.stack([jnp.stack(tile_row, axis=3) for tile_row in tiles], axis=2)
    return y.reshape(number, rows * _TILE, columns * _TILE, -1)[:, :height, :width]


def _every_fourth(x: jax.Array, axis: int, start: int, count: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + _TILE * (count - 1) + 1, _TILE, axis)


def _combined(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ terms, without the multiplications by 0, 1 and -1."""
    sums = []
    for row in matrix.tolist():
        parts = [term if factor == 1 else factor * term for factor, term in zip(row, terms, strict=True) if factor]
        sums.append(sum(parts[1:], start=parts[0]))
    return sums
