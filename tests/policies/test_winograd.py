"""Winograd's convolution and its gradients against the direct sum in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from minestudio_jax.policies import winograd

pytestmark = pytest.mark.optimized

shapes = pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 4, 4, 5), (3, 5, 9, 4), (1, 1, 2, 6), (2, 16, 16, 64)])
dtypes = pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-5), ("float64", 1e-13)])


def example(shape):
    """An image, a kernel with 6 outputs, and the gradient of the result."""
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=(3, 3, shape[-1], 6)), rng.normal(size=(*shape[:-1], 6))


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_near(found, wanted, rtol):
    found, wanted = np.asarray(found), np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * np.abs(wanted).max())


@shapes
@dtypes
def test_it_is_the_convolution(shape, dtype, rtol):
    """Also of images that are no multiples of a tile, and smaller than one."""
    image, kernel, _ = example(shape)
    with jax.enable_x64(True):
        wanted = direct(jnp.asarray(image), jnp.asarray(kernel))
        found = jax.jit(winograd.convolve)(jnp.asarray(image, dtype), winograd.transform(jnp.asarray(kernel, dtype)))
        assert found.dtype == dtype
        assert_near(found, wanted, rtol)


@shapes
@dtypes
def test_gradients_are_those_of_the_convolution(shape, dtype, rtol):
    def gradients(convolve, dtype):
        image, kernel, dy = (jnp.asarray(x, dtype) for x in example(shape))
        return jax.jit(lambda *primals: jax.vjp(convolve, *primals)[1](dy))(image, kernel)

    with jax.enable_x64(True):
        wanted = gradients(direct, "float64")
        found = gradients(lambda x, kernel: winograd.convolve(x, winograd.transform(kernel)), dtype)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == dtype
            assert_near(ours, theirs, rtol)
