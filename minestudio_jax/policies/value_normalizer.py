"""Running statistics of value targets, by which a value head's predictions are scaled to units of reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_VARIANCE = 1e-2  # as in VPT; keeps a run without any reward from dividing by zero
_REFERENCE_DECAY = 0.99999
_MIN_DEBIAS = 1e-5  # the reference's


class ValueStatistics(NamedTuple):
    """Exponentially weighted moments of value targets; all float32 [].

    `debias` is the sum of the weights given so far, so mean = mean_sum / debias from the first update on.
    """

    mean_sum: jax.Array
    square_sum: jax.Array
    debias: jax.Array


@dataclass(frozen=True)
class ValueNormalizer:
    """How statistics begin, move and scale.

    Attributes:
      decay: weight of the old statistics in an update. 0.99, once an iteration: half of the weight lies on the last
        69 iterations.
      preserves_outputs: the head is rescaled whenever the statistics move, so that no prediction does (Pop-Art, van
        Hasselt et al. 2016, arXiv:1602.07714); statistics that have seen nothing scale by 1.
      per_element: an update of n targets decays the old statistics by decay to the power of n.
    """

    decay: float = 0.99
    preserves_outputs: bool = True
    per_element: bool = False

    @classmethod
    def reference(cls) -> ValueNormalizer:
        """As OpenAI's VPT does it: a slow decay, predictions that move with the statistics, 0.1 before the first."""
        return cls(_REFERENCE_DECAY, preserves_outputs=False)

    def initial(self) -> ValueStatistics:
        """Statistics that have seen nothing."""
        zero = jnp.zeros((), jnp.float32)
        return ValueStatistics(zero, zero, zero)

    def moments(self, statistics: ValueStatistics) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation, float32 []."""
        debias = jnp.maximum(statistics.debias, _MIN_DEBIAS)
        mean = statistics.mean_sum / debias
        scale = jnp.sqrt(jnp.maximum(statistics.square_sum / debias - jnp.square(mean), MIN_VARIANCE))
        if self.preserves_outputs:
            scale = jnp.where(statistics.debias > 0, scale, 1.0)
        return mean, scale

    def updated(self, statistics: ValueStatistics, target: jax.Array, weight: jax.Array) -> ValueStatistics:
        """Takes in targets; those that have weight 0, are not finite or too large to be squared are left out.

        Statistics stay as they are if no target is left, or if those that are would make them overflow.

        Args:
          statistics: before.
          target: float32 [...], in reward units.
          weight: float32 [...], as `target`.
        """
        weight = jnp.where(jnp.isfinite(jnp.square(target)), weight, 0.0)
        target = jnp.where(weight > 0, target, 0.0)
        total = jnp.sum(weight)
        count = total if self.per_element else 1.0
        step = -jnp.expm1(count * math.log(self.decay))
        new = ValueStatistics(
            (1 - step) * statistics.mean_sum + step * jnp.sum(weight * target) / total,
            (1 - step) * statistics.square_sum + step * jnp.sum(weight * jnp.square(target)) / total,
            (1 - step) * statistics.debias + step,
        )
        mean, scale = self.moments(new)
        usable = (total > 0) & jnp.isfinite(mean) & jnp.isfinite(scale)
        return jax.tree.map(lambda after, before: jnp.where(usable, after, before), new, statistics)

    def rescaled(
        self, kernel: jax.Array, bias: jax.Array, old: ValueStatistics, new: ValueStatistics
    ) -> tuple[jax.Array, jax.Array]:
        """A linear head for the new statistics; if outputs are preserved, of the same denormalised output as before.

        sigma' (w' x + b') + mu' = sigma (w x + b) + mu.
        """
        if not self.preserves_outputs:
            return kernel, bias
        old_mean, old_scale = self.moments(old)
        new_mean, new_scale = self.moments(new)
        return kernel * (old_scale / new_scale), (bias * old_scale + old_mean - new_mean) / new_scale
