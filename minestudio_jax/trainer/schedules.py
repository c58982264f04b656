"""What changes from iteration to iteration: the learning rate, and the weights of some terms of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from minestudio_jax.config import TrainerConfig


class Coefficients(NamedTuple):
    """One iteration's, as scalars that a compiled update takes.

    Attributes:
      learning_rate: float32 [].
      kl_reference: float32 [], weight of the divergence from the reference.
      entropy_bonus: float32 [], weight of the entropy.
      warm_up: bool [], only the value head learns.
      version: int32 [], policy version of the parameters before the update.
    """

    learning_rate: Any
    kl_reference: Any
    entropy_bonus: Any
    warm_up: Any
    version: Any

    @classmethod
    def abstract(cls) -> Coefficients:
        """Shapes and dtypes, to compile with."""
        types = (np.float32, np.float32, np.float32, np.bool_, np.int32)
        return cls(*(jax.ShapeDtypeStruct((), dtype) for dtype in types))


def coefficients(config: TrainerConfig, iteration: int, version: int) -> Coefficients:
    """Those of the iteration behind so many finished ones, which trains the policy of this version.

    The learning rate rises linearly over the first `learning_rate_warmup` iterations, the first of which already
    learns; annealed, it falls linearly to 0 at `num_iterations`. The other two decay geometrically.
    """
    rate = config.learning_rate * min(1.0, (iteration + 1) / (config.learning_rate_warmup + 1))
    if config.anneal_lr_linearly:
        rate *= max(0.0, 1.0 - iteration / config.num_iterations)
    return Coefficients(
        np.float32(rate),
        np.float32(config.kl_reference_coef * config.kl_reference_decay**iteration),
        np.float32(config.entropy_bonus_coef * config.entropy_bonus_decay**iteration),
        np.bool_(iteration < config.vf_warmup),
        np.int32(version),
    )
