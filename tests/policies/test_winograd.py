"""Winograd's convolution against the direct sum in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies import winograd
from minestudio_jax.policies.convolution import convolve_3x3

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 4, 4, 5), (3, 5, 9, 4), (1, 1, 2, 6), (2, 16, 16, 64)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-5), ("float64", 1e-13)])
def test_it_is_the_convolution(shape, dtype, rtol):
    """Also of images that are no multiples of a tile, and smaller than one."""
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=shape), rng.normal(size=(3, 3, shape[-1], 6))
    with jax.enable_x64(True):
        wanted = convolve_3x3(jnp.asarray(image), jnp.asarray(kernel))
        found = jax.jit(winograd.convolve)(jnp.asarray(image, dtype), winograd.transform(jnp.asarray(kernel, dtype)))
        wanted, found = np.asarray(wanted), np.asarray(found)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * np.abs(wanted).max())
