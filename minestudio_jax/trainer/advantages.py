"""Generalised advantage estimation over fragments."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax


def generalized_advantage_estimation(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    truncation_value: jax.Array,
    discount: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets of N independent fragments of T steps.

        delta_t = r_t + gamma V'_{t+1} - V_t
        A_t     = delta_t + gamma lambda (1 - end_t) A_{t+1},   A_T = 0

    where end_t = terminated_t or truncated_t, and V'_{t+1} is 0 after a termination, the value of the episode's
    last observation after a truncation, and V_{t+1} otherwise. A step that is both is a termination.

    Args:
      reward: [N, T] float32, of action t.
      value: [N, T+1] float32, of observation t; column T is the observation after the last action.
      terminated: [N, T] bool, the task ended after action t.
      truncated: [N, T] bool, a limit outside the task cut the episode after action t.
      truncation_value: [N, T] float32, value of the last observation of an episode where truncated.
      discount: gamma.
      gae_lambda: lambda.
    Returns:
      advantage [N, T] and value_target = advantage + value[:, :T], float32.

    References:
      Schulman et al. 2016, arXiv:1506.02438; for time limits Pardo et al. 2018, arXiv:1712.00378.
    """
    continues = jnp.zeros(reward.shape[0], bool)
    return joined_generalized_advantage_estimation(
        reward, value, terminated, truncated, truncation_value, continues, discount, gae_lambda
    )


def joined_generalized_advantage_estimation(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    truncation_value: jax.Array,
    continues: jax.Array,
    discount: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
    """As `generalized_advantage_estimation`, with some rows the continuation of the row before.

    Inside a row the recursion is a scan over T, for all rows at once. It is linear in what comes in from the
    right, so joining takes one more, scalar scan over the rows: A_t = A_t^local + decay_t A_0^{next row}, with
    decay_t the product of gamma lambda (1 - end) from t to T-1.

    Args:
      continues: [N] bool, row n+1 begins with the step after row n's last. The last entry is ignored.
      (others): as there.
    """
    _check_shapes(reward, value, terminated, truncated, truncation_value, continues)
    delta, decay = _errors(reward, value, terminated, truncated, truncation_value, discount, gae_lambda)
    advantage = _sums(delta, decay, continues)
    return advantage, advantage + value[:, :-1]


def joined_vtrace(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    truncation_value: jax.Array,
    continues: jax.Array,
    log_ratio: jax.Array,
    discount: float,
    trace_lambda: float,
    clip: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets of a policy other than the one that acted, by V-trace.

        rho_t = min(clip, pi(a_t) / mu(a_t))
        e_t   = rho_t (delta_t + gamma lambda (1 - end_t) e_{t+1}),   v_t = V_t + e_t,   A_t = e_t

    with the delta of `generalized_advantage_estimation`. Where the policy is the one that acted, rho is 1 and this is
    that function. As there lambda shortens the traces, and A_t bootstraps from lambda v_{t+1} + (1 - lambda) V_{t+1}.

    Args:
      log_ratio: [N, T] float32, log pi(a_t) - log mu(a_t) of the policy whose values these are, pi, and the one that
        acted, mu.
      trace_lambda: lambda.
      clip: of the importance weights.
      (others): as in `joined_generalized_advantage_estimation`.

    References:
      Espeholt et al. 2018, arXiv:1802.01561, with both of its clips equal.
    """
    _check_shapes(reward, value, terminated, truncated, truncation_value, continues)
    chex.assert_equal_shape([reward, log_ratio])
    delta, decay = _errors(reward, value, terminated, truncated, truncation_value, discount, trace_lambda)
    # Clipped before the exponential, which could overflow.
    weight = jnp.exp(jnp.minimum(log_ratio, jnp.log(jnp.maximum(clip, 1e-30))))
    error = _sums(weight * delta, weight * decay, continues)
    return error, error + value[:, :-1]


def _check_shapes(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    truncation_value: jax.Array,
    continues: jax.Array,
) -> None:
    chex.assert_rank([reward, value, terminated, truncated, truncation_value, continues], [2] * 5 + [1])
    chex.assert_equal_shape([reward, terminated, truncated, truncation_value, value[:, 1:]])
    chex.assert_equal_shape_prefix([reward, continues], 1)


def _errors(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    truncation_value: jax.Array,
    discount: float,
    trace_lambda: float,
) -> tuple[jax.Array, jax.Array]:
    """delta and gamma lambda (1 - end), [N, T]."""
    next_value = jnp.where(terminated, 0.0, jnp.where(truncated, truncation_value, value[:, 1:]))
    delta = reward + discount * next_value - value[:, :-1]
    return delta, discount * trace_lambda * (1.0 - (terminated | truncated))


def _sums(delta: jax.Array, decay: jax.Array, continues: jax.Array) -> jax.Array:
    """x_t = delta_t + decay_t x_{t+1}, [N, T], across rows that continue each other."""

    def step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        total, product = carry
        delta_t, decay_t = inputs
        total, product = delta_t + decay_t * total, decay_t * product
        return (total, product), (total, product)

    rows = delta.shape[0]
    carry = (jnp.zeros(rows, delta.dtype), jnp.ones(rows, delta.dtype))
    _, (local, product) = lax.scan(step, carry, (delta.T, decay.T), reverse=True)
    local, product = local.T, product.T

    def join(incoming: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        local_0, product_0, continues_n = row
        incoming = jnp.where(continues_n, incoming, 0.0)
        return local_0 + product_0 * incoming, incoming

    continues = jnp.asarray(continues).at[-1].set(False)
    columns = (local[:, 0], product[:, 0], continues)
    _, incoming = lax.scan(join, jnp.zeros((), delta.dtype), columns, reverse=True)
    return local + product * incoming[:, None]


def normalized(advantage: jax.Array, weight: jax.Array) -> jax.Array:
    """Scales to weighted mean 0 and deviation 1.

        mean = sum w A / sum w,   deviation^2 = sum w (A - mean)^2 / sum w

    Entries that are not finite, or too large to be squared, count in neither and stay as they are: what cannot be
    learnt is then the optimiser steps that hold them, and no others.

    Args:
      advantage: [N, T] float32.
      weight: [N, T] float32, of each step in the loss, 0 for padding; what has weight 0 becomes 0.
    """
    counted = jnp.where(jnp.isfinite(jnp.square(advantage)), weight, 0.0)
    total = jnp.sum(counted)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(counted * x) / jnp.where(total > 0, total, 1.0)

    known = jnp.where(counted > 0, advantage, 0.0)
    # From one of them first: of equal ones nothing is left, where the rounding of their mean would become deviation 1.
    centred = known - known.reshape(-1)[jnp.argmax(counted)]
    centred -= mean(centred)
    # Two passes: E[x^2] - E[x]^2 can come out negative in float32.
    scaled = centred / (jnp.sqrt(mean(jnp.square(centred))) + 1e-8)
    return jnp.where(counted > 0, scaled, jnp.where(weight > 0, advantage, 0.0))
