"""A 3x3 convolution whose gradient is fast on CPUs inside `lax.scan`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def convolve_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation with stride 1 and zero padding that keeps the image size.

    XLA's CPU compiler brings a convolution's axes into the order its fast kernel needs only outside of loops. The
    gradients of a convolution, as JAX states them, need that reordering, so in a scan they fall back to a naive
    loop nest (12 to 15 times slower, measured on two cores). Here the CPU gets them with explicitly transposed
    operands; elsewhere they are JAX's own.

    Args:
      x: [N, H, W, I].
      kernel: [3, 3, I, O].
    Returns:
      [N, H, W, O].
    """
    return _convolve(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(residual: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(*residual, dy, cpu=_gradients_in_canonical_layout, default=_gradients)


def _gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(_convolve, x, kernel)[1](dy)


def _gradients_in_canonical_layout(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    dx = _convolve(dy, jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
    # dkernel[a, b, i, o] = sum_{n,y,x} x[n, y+a-1, x+b-1, i] dy[n, y, x, o]: a convolution with the input
    # channels as batch, the images as input channels and dy as an H x W kernel.
    dkernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).transpose(1, 2, 0, 3)
    return dx, dkernel


convolve_3x3.defvjp(_forward, _backward)
