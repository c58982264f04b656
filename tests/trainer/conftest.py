"""A small policy, its state after an iteration, and what it played."""

from __future__ import annotations

import jax
import pytest

from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.state import initial_state
from tests.trainer.fragments import make_fragments, tiny_policy
from tests.trainer.updates import CONFIG, updated


@pytest.fixture(scope="session")
def policy():
    return tiny_policy()


@pytest.fixture(scope="session")
def state(policy):
    """After one iteration: statistics and optimiser are no longer empty."""
    fresh = initial_state(policy, CONFIG, jax.random.key(0))
    batch = stack_fragments(make_fragments(policy, fresh.params, 8, seed=9))
    return jax.device_get(updated(policy, CONFIG)(fresh, batch, coefficients(CONFIG, 0, 1))[0])


@pytest.fixture(scope="session")
def fragments(policy, state):
    return make_fragments(policy, state.params, 8)
