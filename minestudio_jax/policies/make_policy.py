"""From settings to a policy."""

from __future__ import annotations

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Policy
from minestudio_jax.utils.imports import load_factory


def make_policy(config: Config, spec: EnvironmentSpec) -> Policy:
    """The policy that learner and rollout workers share.

    Raises:
      ConfigError: policy.factory cannot be imported, refuses its options, or gives something else than a Policy.
      ValueError: the policy cannot serve such environments.
    """
    if not config.policy.factory:
        return ImpalaPolicy(spec, config.policy.channels, config.policy.hidden_size, config.trainer.use_normalized_vf)
    factory = load_factory("policy.factory", config.policy.factory)
    try:
        policy = factory(spec, **config.policy.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"policy.factory={config.policy.factory!r} with policy.options={config.policy.options} failed: {error}"
        ) from error
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"policy.factory={config.policy.factory!r} gave a {type(policy).__name__}, not a "
            "minestudio_jax.policies.policy.Policy: derive it from that class"
        )
    return policy
