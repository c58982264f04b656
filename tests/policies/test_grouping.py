"""Groups of images change nothing but the order of the work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies.grouping import in_groups


@pytest.mark.parametrize(("number", "most", "group"), [(12, 0, 12), (12, 12, 12), (12, 5, 4), (7, 4, 1), (3, 32, 3)])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_row_is_encoded_and_so_is_its_gradient(number, most, group, recompute):
    seen = []

    def encode(x):
        seen.append(x.shape[0])
        return jnp.sin(x).sum(axis=2)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(number, 2, 3)), jnp.float32)
    np.testing.assert_allclose(in_groups(encode, x, most, recompute), jnp.sin(x).sum(axis=2), rtol=1e-6)
    assert set(seen) == {group}
    gradient = jax.grad(lambda x: (in_groups(encode, x, most, recompute) ** 2).sum())(x)
    wanted = jax.grad(lambda x: (encode(x) ** 2).sum())(x)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5)
