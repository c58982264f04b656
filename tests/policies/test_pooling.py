"""Pooling by slices against XLA's windowed reduction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minestudio_jax.policies.pooling import max_pool_3x3

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 5, 6, 2), (3, 7, 9, 1), (1, 1, 2, 4), (1, 2, 1, 1)])
def test_it_is_the_windowed_maximum_and_so_is_its_gradient(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.permutation(np.prod(shape)).reshape(shape), jnp.float32)  # no two are equal

    def reference(x):
        return nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    found = max_pool_3x3(x)
    np.testing.assert_array_equal(found, reference(x))
    weight = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    ours, theirs = (jax.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (max_pool_3x3, reference))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_of_equal_maxima_one_gets_the_gradient():
    gradient = jax.grad(lambda x: max_pool_3x3(x).sum())(jnp.zeros((1, 2, 2, 1)))
    assert sorted(gradient.ravel().tolist()) == [0, 0, 0, 1]
