"""Whether the learner learns: worlds with a known best policy, within a stated number of steps, with three seeds.

Everything takes part but Ray: collection, advantages, epochs, value statistics, memory.
"""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.utils.timing import Stopwatch
from tests.learning.worlds import Bandit, TMaze, Wages

ENVS, LENGTH = 32, 16
IMAGE = {"image": ArraySpec((8, 8, 3), "uint8")}
CONFIG = TrainerConfig(
    batch_size_per_device=8, batches_per_iteration=4, epochs_per_iteration=2, context_length=LENGTH,
    learning_rate=2e-3, discount=0.9, gae_lambda=0.95, entropy_bonus_coef=0.02, max_grad_norm=1.0,
)  # fmt: skip
SEEDS = (0, 1, 2)

pytestmark = [pytest.mark.slow, pytest.mark.optimized]


class Forgetful(ImpalaPolicy):
    """Every observation is its first."""

    def apply(self, params, obs, first, state):
        return super().apply(params, obs, first | True, state)


def learn(folder, world, actions, seed, steps, policy=ImpalaPolicy, **settings):
    """Mean return and length of the episodes in the last tenth of so many steps."""
    config = TrainerConfig(**{**vars(CONFIG), **settings})
    policy = policy(EnvironmentSpec(IMAGE, {"choice": actions}), (8,), 32)
    collector = DeviceCollector(policy, world, sharding.make_mesh(config), ENVS, 1, LENGTH, (8, 8), seed)
    (folder / "logs").mkdir()
    trainer = PPOTrainer(
        config, policy, EnvironmentSpec(IMAGE, {"choice": actions}), LENGTH, folder, seed, None,
        collector,
    )  # fmt: skip
    returns, lengths = [], []
    try:
        iterations = steps // (ENVS * LENGTH)
        for iteration in range(iterations):
            trainer.iterate(trainer.wait_for_batch(1.0), Stopwatch())
            if iteration >= 0.9 * iterations:
                ended = trainer.last_ended
                returns.extend(ended.total_reward[ended.ended])
                lengths.extend(ended.length[ended.ended])
    finally:
        trainer.close()
    return np.mean(returns), np.mean(lengths)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_arm_of_a_bandit_is_found(tmp_path, seed):
    """Within 15,000 steps: 0.9 is the most there is, the second best arm has 0.6.

    The mean is of a few hundred worlds, which are played again: it may be 0.04 off.
    """
    mean, _ = learn(tmp_path, Bandit(), 5, seed, 15_000)
    assert mean > 0.83


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_sign_said_is_remembered(tmp_path, seed):
    """Within 60,000 steps: 1 is the most there is, 0 without memory."""
    mean, length = learn(tmp_path, TMaze(), 2, seed, 60_000, epochs_per_iteration=4)
    assert length == TMaze.corridor + 2
    assert mean > 0.9


def test_without_memory_nothing_can_be_remembered(tmp_path):
    """The control of the test above."""
    mean, _ = learn(tmp_path, TMaze(), 2, 0, 30_000, Forgetful, epochs_per_iteration=4)
    assert abs(mean) < 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_time_limit_is_not_the_end_of_the_world(tmp_path, seed):
    """D-12, within 30,000 steps: the job is right, though no episode lasts longer than four steps."""
    _, length = learn(tmp_path, Wages(truncates=True), 2, seed, 30_000, discount=Wages.discount)
    assert length > 3.7


@pytest.mark.parametrize("seed", SEEDS)
def test_but_the_end_of_the_world_is(tmp_path, seed):
    """D-12: of the same rewards the best policy is the opposite one when the limit terminates."""
    _, length = learn(tmp_path, Wages(truncates=False), 2, seed, 30_000, discount=Wages.discount)
    assert length < 1.3
