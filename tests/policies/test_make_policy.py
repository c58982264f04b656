"""Settings that a policy of one's own cannot heed."""

from __future__ import annotations

import pytest

from minestudio_jax.config import Config, ConfigError, PolicyConfig, TrainerConfig
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.make_policy import make_policy, policy_to_train
from minestudio_jax.policies.policy import Policy
from tests.trainer.fragments import SPEC


class Bare(Policy):
    """No more than what must be there."""

    def init(self, key):
        raise NotImplementedError

    def initial_state(self, batch):
        raise NotImplementedError

    def apply(self, params, obs, first, state):
        raise NotImplementedError


class WithValueHead(Bare):
    """What a head needs that is zeroed and warmed up."""

    def only_value_head(self, update):
        raise NotImplementedError

    def zero_value_head(self, params):
        raise NotImplementedError


def bare(spec):
    return Bare()


def with_value_head(spec):
    return WithValueHead()


def settings(factory, **trainer):
    return Config(
        policy=PolicyConfig(factory=factory and f"{__name__}:{factory}", channels=(), hidden_size=8),
        trainer=TrainerConfig(**trainer),
    )


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"vf_warmup": 5}, ["trainer.vf_warmup=5", "the Bare of policy.factory=", "only_value_head", "set 0"]),
        ({"zero_initial_vf": False}, ["trainer.zero_initial_vf=false", "zero_value_head", "remove it"]),
    ],
)
def test_a_value_head_that_a_policy_does_not_name_is_not_treated_apart(trainer, words):
    """D-22: by default everything would warm up, the acting policy too; whoever only plays does not mind."""
    config = settings("bare", **trainer)
    with pytest.raises(ConfigError) as error:
        policy_to_train(config, SPEC)
    for word in words:
        assert word in str(error.value)
    assert isinstance(make_policy(config, SPEC), Bare)
    assert isinstance(policy_to_train(settings("with_value_head", **trainer), SPEC), WithValueHead)
    assert isinstance(policy_to_train(settings("", **trainer), SPEC), ImpalaPolicy)


def test_with_the_settings_that_there_are_by_default_the_three_functions_are_enough():
    assert isinstance(policy_to_train(settings("bare"), SPEC), Bare)
