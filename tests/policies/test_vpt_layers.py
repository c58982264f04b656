"""VPT's layers by themselves; the networks made of them are compared with the reference in test_vpt_golden.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minestudio_jax.policies.vpt_layers import EPSILON, ImageNorm

pytestmark = pytest.mark.optimized


def test_sums_of_whole_images_are_accurate():
    """Against float64. Sums of all three axes at once leave the scale's gradient 1e-5 to 4e-5 off."""
    rng = np.random.default_rng(0)
    x, weights = rng.gamma(0.5, size=(2, 128, 128, 64)).astype(np.float32), rng.normal(1, size=(2, 128, 128, 64))
    scale, bias = rng.normal(size=(2, 64)).astype(np.float32)

    @jax.jit
    def output_and_gradients(x, scale, bias, weights):
        def normalised(x, scale, bias):
            norm = ImageNorm(64, nnx.Rngs(0))
            norm.scale[...], norm.bias[...] = scale, bias
            return norm(jax.nn.relu(x))

        y, gradients_of = jax.vjp(normalised, x, scale, bias)
        return y, *gradients_of(weights)

    exact, axes = x.astype(np.float64), (1, 2, 3)
    deviation = np.sqrt(exact.var(axes, keepdims=True) + EPSILON)
    normal = (exact - exact.mean(axes, keepdims=True)) / deviation
    scaled = weights * scale
    gradient = scaled - scaled.mean(axes, keepdims=True) - normal * (scaled * normal).mean(axes, keepdims=True)
    wanted = (
        normal * scale + bias, gradient / deviation, (weights * normal).sum((0, 1, 2)), weights.sum((0, 1, 2))
    )  # fmt: skip
    found = output_and_gradients(x, scale, bias, weights.astype(np.float32))
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.linalg.norm(ours - theirs) < 3e-6 * np.linalg.norm(theirs)


def test_half_precision_is_normalised_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4), jnp.bfloat16)
    found = ImageNorm(4, nnx.Rngs(0))(x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, ImageNorm(4, nnx.Rngs(0))(x.astype(jnp.float32)))
