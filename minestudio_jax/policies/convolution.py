"""A 3x3 convolution that is fast on CPUs, with few channels and inside `lax.scan` too."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from minestudio_jax.policies import winograd

_FEW_INPUTS, _FEW_OUTPUTS = 8, 16  # channels, up to which pairs of pixels pay
ENOUGH_FOR_TILES = 16  # input channels, from which Winograd's tiles pay


def _convolve(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


def _convolve_on_cpu(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """The same by Winograd's tiles if these fit, and with few channels by pairs of neighbouring pixels.

    One matrix leads from the 3 x 4 pixels around a pair to the pair. A third of it is zeros, but with three or eight
    channels XLA's convolution leaves most of a vector register empty: this took a third to a half of its time.
    """
    number, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    if _in_tiles(x):
        return winograd.convolve(x, winograd.transform(kernel), precision)
    if inputs > _FEW_INPUTS or outputs > _FEW_OUTPUTS or width % 2:
        return _convolve(x, kernel, precision)
    pairs = x.reshape(number, height, width // 2, 2 * inputs)
    before, after = _shifted(pairs[..., inputs:], 2, 1), _shifted(pairs[..., :inputs], 2, -1)
    four = jnp.concatenate([before, pairs, after], axis=-1)
    around = jnp.concatenate([_shifted(four, 1, 1), four, _shifted(four, 1, -1)], axis=-1)
    # [3, 4, I, 2, O]: pixel c of the four is seen by the kernel's column c from the pair's left, c - 1 from its right.
    none = jnp.zeros((3, 1, inputs, outputs), kernel.dtype)
    matrix = jnp.stack([jnp.concatenate([kernel, none], 1), jnp.concatenate([none, kernel], 1)], axis=3)
    matrix = matrix.reshape(12 * inputs, 2 * outputs)
    return jnp.matmul(around, matrix, precision=precision).reshape(number, height, width, outputs)


def _in_tiles(x: jax.Array) -> bool:
    """Whether Winograd's convolution pays: with enough channels, and if no tile reaches over the edge."""
    _, height, width, inputs = x.shape
    return inputs >= ENOUGH_FOR_TILES and x.dtype != jnp.bfloat16 and height % 4 == 0 and width % 4 == 0


def _shifted(x: jax.Array, axis: int, by: int) -> jax.Array:
    """x[..., n - by, ...] along an axis, 0 where there is none."""
    padding = [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """Cross-correlation with stride 1 and zero padding that keeps the image size.

    XLA's CPU compiler brings a convolution's axes into the order its fast kernel needs only outside of loops. The
    gradients of a convolution, as JAX states them, need that reordering, so in a scan they fall back to a naive
    loop nest (12 to 15 times slower, measured on two cores). Here the CPU gets them with explicitly transposed
    operands, or by Winograd's tiles; elsewhere they are JAX's own.

    Args:
      x: [N, H, W, I].
      kernel: [3, 3, I, O].
      precision: of the products.
    Returns:
      [N, H, W, O].
    """
    on_cpu, elsewhere = partial(_convolve_on_cpu, precision=precision), partial(_convolve, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _forward(
    x: jax.Array, kernel: jax.Array, precision: lax.Precision | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_3x3(x, kernel, precision), (x, kernel)


def _backward(
    precision: lax.Precision | None, residual: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gradients = partial(_gradients, precision)
    on_cpu = partial(_gradients_on_cpu, precision)
    return lax.platform_dependent(*residual, dy, cpu=on_cpu, default=gradients)


def _gradients(
    precision: lax.Precision | None, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Linear in each operand: transposed one by one, the convolution itself need not be computed again.
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, precision), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, precision), kernel)(dy)
    return dx, dkernel


def _gradients_on_cpu(
    precision: lax.Precision | None, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if _in_tiles(x):
        _, transposed = jax.vjp(partial(_convolve_on_cpu, precision=precision), x, kernel)
        return transposed(dy)
    dx = _convolve_on_cpu(dy, jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2), precision)
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


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [N, H, W, C] + bias [C], to whole rows of pixels.

    So the gradient of the bias is added up row by row. XLA for CPUs would else add up one pixel after the other, and
    the parts of the gradient of x one by one: 7 % of an update.
    """
    number, height, width, channels = x.shape
    rows = x.reshape(number * height, width * channels) + jnp.tile(bias, width)
    return rows.reshape(x.shape)
