"""TrainState: everything the jitted update reads and writes; and the run's counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.policy import Params, Policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """
    Attributes:
      params: of the policy, its value statistics included.
      optimizer: state of the optimiser.
      key: uint32 [2], raw PRNG key for shuffling.
      reference: parameters that the policy is held near; None if it is not held.
      rollout: DeviceRolloutState in a checkpoint of a run that collects on the device; None everywhere else.
    """

    params: Params
    optimizer: Any
    key: jax.Array
    reference: Params | None = None
    rollout: Any = None


@dataclass(frozen=True)
class Counters:
    """What a run has done since it first began; survives every resume.

    Attributes:
      iteration: finished iterations.
      env_steps: genuine environment steps that reached the replay buffer, trained on or not.
      trained_steps: genuine steps trained on, once per iteration they were used in.
      policy_version: newest published version.
      wall_time_s: seconds the run has been running, over all its processes.
      best_return: highest mean return of 20 episodes in a row; None before there were so many.
    """

    iteration: int = 0
    env_steps: int = 0
    trained_steps: int = 0
    policy_version: int = 0
    wall_time_s: float = 0.0
    best_return: float | None = None


def make_optimizer(config: TrainerConfig) -> optax.GradientTransformation:
    """AdamW for a learning rate of 1; the caller clips the gradient and multiplies the change.

    Nothing with fewer than two axes decays.
    """
    return optax.adamw(
        1.0,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    )


def initial_state(policy: Policy, config: TrainerConfig, key: jax.Array, params: Params | None = None) -> TrainState:
    """State of a run that has done nothing; pure, to be jitted into its shardings.

    Args:
      key: PRNG key that all randomness of the learner derives from.
      params: to begin with; None: they are drawn at random.
    """
    init_key, key = jax.random.split(key)
    if params is None:
        params = policy.init(init_key)
    if config.zero_initial_vf:
        params = policy.zero_value_head(params)
    # A copy: the update takes over the memory of the parameters, and leaves the reference's alone.
    reference = jax.tree.map(jnp.copy, params) if config.kl_reference_coef > 0 else None
    return TrainState(params, make_optimizer(config).init(params), jax.random.key_data(key), reference)
