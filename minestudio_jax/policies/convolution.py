"""A 3x3 convolution whose gradient is fast on CPUs inside `lax.scan`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def _convolve(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """Cross-correlation with stride 1 and zero padding that keeps the image size.

    XLA's CPU compiler brings a convolution's axes into the order its fast kernel needs only outside of loops. The
    gradients of a convolution, as JAX states them, need that reordering, so in a scan they fall back to a naive
    loop nest (12 to 15 times slower, measured on two cores). Here the CPU gets them with explicitly transposed
    operands; elsewhere they are JAX's own.

    Args:
      x: [N, H, W, I].
      kernel: [3, 3, I, O].
      precision: of the products.
    Returns:
      [N, H, W, O].
    """
    return _convolve(x, kernel, precision)


def _forward(
    x: jax.Array, kernel: jax.Array, precision: lax.Precision | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, precision), (x, kernel)


def _backward(
    precision: lax.Precision | None, residual: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gradients = partial(_gradients, precision)
    on_cpu = partial(_gradients_in_canonical_layout, precision)
    return lax.platform_dependent(*residual, dy, cpu=on_cpu, default=gradients)


def _gradients(
    precision: lax.Precision | None, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Linear in each operand: transposed one by one, the convolution itself need not be computed again.
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, precision), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, precision), kernel)(dy)
    return dx, dkernel


def _gradients_in_canonical_layout(
    precision: lax.Precision | None, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dx = _convolve(dy, jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2), precision)
    # dkernel[a, b, i, o] = sum_{n,y,x} x[n, y+a-1, x+b-1, i] dy[n, y, x, o]: a convolution with the input
    # channels as batch, the images as input channels and dy as an H x W kernel.
    dkernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    ).transpose(1, 2, 0, 3)
    return dx, dkernel


convolve_3x3.defvjp(_forward, _backward)
