"""Action distribution and value normalisation, as pure functions.

An action has one or more components, each categorical and independent given the observation; its
log-probability is the sum over components.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

STATISTICS_DECAY = 0.99  # per iteration: half of the weight lies on the last 69 iterations
MIN_VARIANCE = 1e-2  # as in VPT; keeps a run without any reward from dividing by zero


def sample(key: jax.Array, logits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Draws one action.

    Args:
      key: PRNG key.
      logits: component -> float32 [..., A].
    Returns:
      component -> int32 [..., 1].
    """
    keys = jax.random.split(key, len(logits))
    return {
        name: jax.random.categorical(k, logits[name])[..., None].astype(jnp.int32)
        for k, name in zip(keys, sorted(logits), strict=True)
    }


def mode(logits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The most probable action: component -> int32 [..., 1]."""
    return {name: jnp.argmax(head, axis=-1)[..., None].astype(jnp.int32) for name, head in logits.items()}


def log_prob(logits: dict[str, jax.Array], action: dict[str, jax.Array]) -> jax.Array:
    """Log-probability of actions.

    Args:
      logits: component -> normalised log-probabilities [..., A].
      action: component -> int32 [..., 1].
    Returns:
      float32 [...].
    """
    terms = [jnp.take_along_axis(logits[name], action[name], axis=-1)[..., 0] for name in sorted(logits)]
    return sum(terms[1:], start=terms[0])


def entropy(logits: dict[str, jax.Array]) -> jax.Array:
    """Entropy in nats: -sum_a p(a) log p(a), summed over components; float32 [...]."""
    terms = [-jnp.sum(jnp.exp(head) * head, axis=-1) for _, head in sorted(logits.items())]
    return sum(terms[1:], start=terms[0])


def kl(p: dict[str, jax.Array], q: dict[str, jax.Array]) -> jax.Array:
    """KL(p || q) in nats, sum_a p(a) (log p(a) - log q(a)), summed over components; float32 [...]."""
    terms = [jnp.sum(jnp.exp(p[name]) * (p[name] - q[name]), axis=-1) for name in sorted(p)]
    return sum(terms[1:], start=terms[0])


class ValueStatistics(NamedTuple):
    """Exponentially weighted moments of value targets; all float32 [].

    `debias` is the sum of the weights given so far, so mean = mean_sum / debias from the first update on.
    """

    mean_sum: jax.Array
    square_sum: jax.Array
    debias: jax.Array


def initial_value_statistics() -> ValueStatistics:
    zero = jnp.zeros((), jnp.float32)
    return ValueStatistics(zero, zero, zero)


def value_moments(statistics: ValueStatistics) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation; 0 and 1 before the first update."""
    seen = statistics.debias > 0
    debias = jnp.where(seen, statistics.debias, 1.0)
    mean = statistics.mean_sum / debias
    variance = jnp.maximum(statistics.square_sum / debias - jnp.square(mean), MIN_VARIANCE)
    return mean, jnp.where(seen, jnp.sqrt(variance), 1.0)


def updated_value_statistics(statistics: ValueStatistics, target: jax.Array, weight: jax.Array) -> ValueStatistics:
    """Takes in one iteration's targets; those that are not finite or have weight 0 are left out.

    Args:
      statistics: before.
      target: float32 [...], in reward units.
      weight: float32 [...], as `target`.
    """
    weight = weight * jnp.isfinite(target)
    target = jnp.where(weight > 0, target, 0.0)
    total = jnp.sum(weight)
    # An iteration without a single usable target moves nothing.
    step = jnp.where(total > 0, 1 - STATISTICS_DECAY, 0.0)
    total = jnp.maximum(total, 1.0)
    return ValueStatistics(
        (1 - step) * statistics.mean_sum + step * jnp.sum(weight * target) / total,
        (1 - step) * statistics.square_sum + step * jnp.sum(weight * jnp.square(target)) / total,
        (1 - step) * statistics.debias + step,
    )


def rescaled_value_head(
    kernel: jax.Array, bias: jax.Array, old: ValueStatistics, new: ValueStatistics
) -> tuple[jax.Array, jax.Array]:
    """A linear head whose denormalised output is the same under `new` as (kernel, bias) gave under `old`.

    sigma' (w' x + b') + mu' = sigma (w x + b) + mu (van Hasselt et al. 2016, arXiv:1602.07714, "Pop-Art").
    """
    old_mean, old_scale = value_moments(old)
    new_mean, new_scale = value_moments(new)
    return kernel * (old_scale / new_scale), (bias * old_scale + old_mean - new_mean) / new_scale
