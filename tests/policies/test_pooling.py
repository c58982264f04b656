"""Pooling by slices against XLA's windowed reduction."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

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
    ours, theirs = (jax.jit(jax.grad(lambda x, f=f: (weight * f(x)).sum()))(x) for f in (max_pool_3x3, reference))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_of_equal_maxima_one_gets_the_gradient():
    gradient = jax.grad(lambda x: max_pool_3x3(x).sum())(jnp.zeros((1, 2, 2, 1)))
    assert sorted(gradient.ravel().tolist()) == [0, 0, 0, 1]


@pytest.mark.parametrize("shape", [(4, 2, 8, 8, 3), (4, 1, 5, 6, 2)])
def test_the_stepwise_gradient_is_the_same_with_ties_and_in_a_loop_too(shape):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), jnp.float32)  # many are equal

    def loss(stepwise):
        pool = partial(max_pool_3x3, stepwise=stepwise)
        weight = jnp.sin(jnp.arange(pool(x[0]).size)).reshape(pool(x[0]).shape)
        return lambda x: (weight * lax.map(pool, x)).sum()

    ours, theirs = (jax.jit(jax.grad(loss(stepwise)))(x) for stepwise in (True, False))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
