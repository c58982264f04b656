"""Updates of one iteration, compiled once for each policy and its settings."""

from __future__ import annotations

import jax
import numpy as np

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.update import make_update

CONFIG = TrainerConfig(
    batch_size_per_device=4, batches_per_iteration=2, context_length=4, learning_rate=1e-2, entropy_bonus_coef=0.01,
    weight_decay=0.1, max_grad_norm=1.0,
)  # fmt: skip


def updated(policy, config):
    key = (policy, repr(config))
    if key not in _UPDATES:
        _UPDATES[key] = jax.jit(make_update(policy, config, make_mesh(config)))
    return _UPDATES[key]


_UPDATES = {}


def update(policy, config, state, batch, version=1, **changed):
    """State and metrics; `changed` coefficients take the place of the first iteration's."""
    now = coefficients(config, 0, version)._replace(**changed)
    state, metrics, _ = updated(policy, config)(state, batch, now)
    return jax.device_get(state), {name: float(x) for name, x in metrics.items()}


def assert_same(one, other, **tolerance):
    for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, c, **tolerance)


def distance(one, other):
    return max(np.abs(a - c).max() for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
