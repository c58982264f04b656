"""3x3 max-pooling with stride 2 as maxima of slices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def max_pool_3x3(x: jax.Array, stepwise: bool = False) -> jax.Array:
    """Maximum over windows of 3x3 around every second pixel; the border is padded.

    XLA's own windowed reduction, and more so its gradient, are slow on CPUs: there this took a fifth of the time for
    64 channels of 128x128 pixels, and its gradient a twentieth. Of equal maxima of a window one gets the gradient.

    Args:
      x: [N, H, W, C].
      stepwise: on CPUs, compute the gradient with every step of it in memory before the next begins. As one, XLA
        computes all comparisons anew for every element, and inside of a loop element by element: three times as slow
        for 16 channels of 64x64 pixels. It needs x itself, which pays where that is computed again anyway.
    Returns:
      [N, ceil(H / 2), ceil(W / 2), C].
    """
    return _stepwise(x) if stepwise else _pooled(x)


def _pooled(x: jax.Array) -> jax.Array:
    return _halved(_halved(x, 2), 1)


_stepwise = jax.custom_vjp(_pooled)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _pooled(x), x


def _backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    def transposed(x: jax.Array, dy: jax.Array) -> jax.Array:
        (dx,) = jax.vjp(_pooled, x)[1](dy)
        return dx

    return (lax.platform_dependent(x, dy, cpu=_gradient_on_cpu, default=transposed),)


_stepwise.defvjp(_forward, _backward)


def _gradient_on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
    _, even, odd = _neighbours(x, 1)
    # What is stacked XLA keeps in memory; anything else it may compute anew for each use, barrier or not.
    even, odd = lax.optimization_barrier(jnp.stack([_halved(even, 2), _halved(odd, 2)]))
    dnarrow = _doubled(_shifted(odd, 1, 1, _lowest(x)), even, odd, dy, 1)[:, : x.shape[1]]
    return _doubled(*_neighbours(x, 2), dnarrow, 2)[:, :, : x.shape[2]]


def _halved(x: jax.Array, axis: int) -> jax.Array:
    """Maxima of the pixels 2i - 1, 2i and 2i + 1."""
    before, even, odd = _neighbours(x, axis)
    return _larger(_larger(before, even), odd)


def _doubled(before: jax.Array, even: jax.Array, odd: jax.Array, dy: jax.Array, axis: int) -> jax.Array:
    """The gradient of the largest of three neighbours along an axis: which of them was taken gets it.

    For an odd number of pixels there is one more at the end, that of the padding.
    """
    # Factors of 0 and 1: choices by what was compared would be branches, which random pixels make a CPU guess wrongly.
    from_odd = (odd > jnp.maximum(before, even)).astype(dy.dtype)
    from_before = (before >= even).astype(dy.dtype) * (1 - from_odd)
    # Pixel 2i - 1 as the window's first is the odd one of the pair before.
    dbefore = lax.optimization_barrier(_shifted(from_before * dy, axis, -1, jnp.zeros((), dy.dtype)))
    deven = (1 - from_odd - from_before) * dy
    dodd = from_odd * dy + dbefore
    pairs = lax.optimization_barrier(jnp.stack([deven, dodd], axis + 1))
    return pairs.reshape(*dy.shape[:axis], -1, *dy.shape[axis + 1 :])


def _neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pixels 2i - 1, 2i and 2i + 1, the lowest number where there is none."""
    lowest = _lowest(x)
    x = lax.pad(x, lowest, [(0, x.shape[a] % 2 if a == axis else 0, 0) for a in range(x.ndim)])
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, which, axis + 1, keepdims=False) for which in (0, 1))
    return _shifted(odd, axis, 1, lowest), even, odd


def _lowest(x: jax.Array) -> jax.Array:
    return jnp.array(-jnp.inf, x.dtype)


def _shifted(x: jax.Array, axis: int, by: int, filling: jax.Array) -> jax.Array:
    """x[..., n - by, ...] along an axis, `filling` where there is none."""
    return lax.pad(x, filling, [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])


def _larger(one: jax.Array, other: jax.Array) -> jax.Array:
    """jnp.maximum, but for its gradient, which divides where both are equal."""
    return jnp.where(other <= one, one, other)
