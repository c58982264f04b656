"""The terms of the PPO objective, element by element.

References: Schulman et al. 2017, arXiv:1707.06347; for the second bound Ye et al. 2020, arXiv:1912.09729.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def clipped_surrogate(
    logp: jax.Array,
    old_logp: jax.Array,
    advantage: jax.Array,
    clip: float,
    log_ratio_range: float,
    dual_clip: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Policy loss L = max(-A rho, -A clip(rho, 1-eps, 1+eps)) with rho = exp(logp - old_logp).

    For A < 0 it has no upper bound in rho; with dual clip c it is min(L, -c A) there.

    Args:
      logp: [...] float32, under the policy being trained.
      old_logp: [...] float32, under the policy that the ratio is taken against.
      advantage: [...] float32.
      clip: eps.
      log_ratio_range: the log-ratio is clamped to +- this, so that the loss stays finite.
      dual_clip: c; 0 for none.
    Returns:
      loss [...] and the unclamped log-ratio [...].
    """
    log_ratio = logp - old_logp
    ratio = jnp.exp(jnp.clip(log_ratio, -log_ratio_range, log_ratio_range))
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    loss = jnp.maximum(-advantage * ratio, -advantage * clipped)
    if dual_clip:
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -dual_clip * advantage), loss)
    return loss, log_ratio


def value_loss(
    value: jax.Array,
    target: jax.Array,
    scale: jax.Array,
    old_value: jax.Array | None = None,
    clip: float = 0.0,
) -> jax.Array:
    """Half the squared error in units of `scale`: ((V - R) / scale)^2 / 2.

    Args:
      value: [...] float32, prediction in reward units.
      target: [...] float32, in reward units.
      scale: [] float32, deviation of returns (1 without normalisation).
      old_value: [...] float32; if given, the loss is the larger one of that and the loss of the prediction
        clipped to old_value +- clip * scale.
      clip: see there.
    """
    loss = 0.5 * jnp.square((value - target) / scale)
    if old_value is None:
        return loss
    near = old_value + jnp.clip(value - old_value, -clip * scale, clip * scale)
    return jnp.maximum(loss, 0.5 * jnp.square((near - target) / scale))


def approximate_kl(log_ratio: jax.Array) -> jax.Array:
    """rho - 1 - log rho, whose mean under the old policy is KL(old || new); never negative. [...] float32.

    Reference: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    return jnp.expm1(jnp.minimum(log_ratio, 80.0)) - log_ratio
