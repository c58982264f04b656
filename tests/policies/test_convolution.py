"""The CPU's own forms of a convolution and its gradients against JAX's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from minestudio_jax.policies.convolution import add_bias, convolve_3x3

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((2, 8, 8, 3), 6), ((3, 5, 9, 4), 6), ((2, 7, 2, 8), 16), ((1, 1, 6, 8), 17), ((2, 4, 6, 9), 8)],
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else str(x),
)
def test_output_and_gradients_equal_the_plain_convolution(shape, outputs):
    for ours, theirs, atol in zip(*output_and_gradients(shape, outputs), (2e-5, 2e-4, 2e-4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 5), (16, 32), (8, 16)])
def test_many_channels_give_the_same_to_the_accuracy_of_winograds_tiles(inputs, outputs):
    """With eight inputs it is the image's gradient, from sixteen outputs, that goes by tiles."""
    for ours, theirs in zip(*output_and_gradients((2, 8, 4, inputs), outputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def output_and_gradients(shape, outputs):
    """Ours and the plain convolution's."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], outputs)), jnp.float32)
    dy = jnp.asarray(rng.normal(size=(*shape[:-1], outputs)), jnp.float32)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def all_of(convolve, x, kernel, dy):
        y, transposed = jax.vjp(convolve, x, kernel)
        return y, *transposed(dy)

    return [jax.jit(partial(all_of, convolve))(x, kernel, dy) for convolve in (convolve_3x3, plain)]


def test_gradients_work_inside_a_scan():
    x = jnp.ones((4, 2, 6, 6, 2))
    kernel = jnp.full((3, 3, 2, 2), 0.1)

    def total(kernel):
        return lax.scan(lambda sum_, x: (sum_ + convolve_3x3(x, kernel).sum(), None), 0.0, x)[0]

    direct = jax.grad(lambda k: convolve_3x3(x.reshape(8, 6, 6, 2), k).sum())(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(kernel), direct, rtol=1e-5)


def test_a_bias_is_added_to_every_pixel_and_its_gradient_is_the_sum_over_them():
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(3, 5, 4, 2)), jnp.float32) for _ in range(2))
    y, transposed = jax.vjp(add_bias, x, jnp.array([1.0, -2.0]))
    np.testing.assert_array_equal(y, x + jnp.array([1.0, -2.0]))
    dx, dbias = transposed(dy)
    np.testing.assert_array_equal(dx, dy)
    np.testing.assert_allclose(dbias, dy.sum((0, 1, 2)), rtol=1e-5)
