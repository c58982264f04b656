"""The terms of the objective against their definitions, and at the edges where exponentials end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.trainer import losses


def test_the_surrogate_is_clipped_where_that_makes_it_worse():
    ratio = np.array([0.5, 0.9, 1.0, 1.1, 2.0], np.float32)
    logp = jnp.log(ratio)
    for advantage, expected in ((1.0, -np.minimum(ratio, 1.2)), (-1.0, np.maximum(ratio, 0.8))):
        loss, log_ratio = losses.clipped_surrogate(logp, jnp.zeros(5), jnp.full(5, advantage), 0.2, 50.0)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(log_ratio, logp)


def test_no_gradient_where_the_surrogate_is_clipped():
    gradient = jax.grad(lambda logp, advantage: losses.clipped_surrogate(logp, jnp.float32(0), advantage, 0.2, 50.0)[0])
    assert gradient(jnp.log(1.5), 1.0) == 0
    assert gradient(jnp.log(0.5), -1.0) == 0
    assert gradient(jnp.log(1.5), -1.0) == pytest.approx(1.5)
    assert gradient(jnp.log(0.5), 1.0) == pytest.approx(-0.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("log_ratio", [-100.0, 100.0])
def test_extreme_log_ratios_stay_finite(log_ratio, dtype):
    """D-25: with the second bound no larger than it, and so is the gradient; without, still finite."""
    for advantage in (-1.0, 1.0):
        for dual_clip in (0.0, 3.0):

            def loss(logp, advantage=advantage, dual_clip=dual_clip):
                return losses.clipped_surrogate(logp, dtype(0), dtype(advantage), 0.2, 50.0, dual_clip)

            (value, told), slope = jax.value_and_grad(loss, has_aux=True)(dtype(log_ratio))
            assert np.isfinite(value)
            assert np.isfinite(slope)
            assert told == log_ratio  # what is reported is not clamped
            if dual_clip:
                assert abs(value) <= 3.0
                assert slope == 0 or log_ratio < 0
    assert np.isfinite(losses.approximate_kl(jnp.float32(log_ratio)))


def test_the_second_bound_holds_negative_advantages_only():
    """D-25."""
    ratio = jnp.array([0.5, 1.0, 2.0, 2.9, 4.0, 40.0])
    for advantage, expected in ((-2.0, [1.6, 2.0, 4.0, 5.8, 6.0, 6.0]), (2.0, [-1.0, -2.0, -2.4, -2.4, -2.4, -2.4])):
        loss, _ = losses.clipped_surrogate(jnp.log(ratio), jnp.zeros(6), jnp.full(6, advantage), 0.2, 50.0, 3.0)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_value_loss_is_half_the_squared_error_in_units_of_the_scale():
    assert losses.value_loss(jnp.float32(3), jnp.float32(1), jnp.float32(2)) == pytest.approx(0.5)


def test_the_clipped_value_loss_is_the_larger_one():
    value, target, scale, old = (jnp.float32(x) for x in (3, 1, 1, 0))
    # 3 is clipped to 0.2, which is nearer to the target: the unclipped loss counts.
    assert losses.value_loss(value, target, scale, old, 0.2) == pytest.approx(2.0)
    # 1 would be exact, but is clipped to 0.2.
    assert losses.value_loss(target, target, scale, old, 0.2) == pytest.approx(0.5 * 0.8**2)


def test_the_approximate_kl_has_the_kls_mean_and_is_never_negative():
    old = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    new = jnp.log(jnp.array([0.4, 0.4, 0.2]))
    terms = losses.approximate_kl(new - old)
    assert (terms >= 0).all()
    np.testing.assert_allclose(jnp.sum(jnp.exp(old) * terms), jnp.sum(jnp.exp(old) * (old - new)), rtol=1e-5)
