"""From settings to a policy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from minestudio_jax.config import Config, ConfigError, PolicyConfig
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies import heads
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.policies.pretrained import WeightsError, load_weights, read_model_file, shape_from_json
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.utils.imports import load_factory


def make_policy(config: Config, spec: EnvironmentSpec) -> Policy:
    """The policy that learner and rollout workers share.

    Raises:
      ConfigError: policy.factory cannot be imported, refuses its options, or gives something else than a Policy.
      ValueError: the policy cannot serve such environments.
    """
    settings = config.policy
    heads.check_masks(spec)
    if not settings.factory:
        reference = config.trainer.value_statistics == "reference"
        normalizer = ValueNormalizer.reference() if reference else ValueNormalizer()
        normalizes = config.trainer.use_normalized_vf
        if settings.network == "vpt":
            shape = vpt_shape(settings)
            return VPTPolicy(spec, shape, settings.compute_dtype, settings.remat, normalizer, normalizes)
        return ImpalaPolicy(spec, settings.channels, settings.hidden_size, normalizer, normalizes)
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


def policy_to_train(config: Config, spec: EnvironmentSpec) -> Policy:
    """As `make_policy`, for whoever trains it.

    Raises:
      ConfigError: as there, or the trainer's settings ask for what a policy of one's own does not do.
      ValueError: as there.
    """
    policy, trainer = make_policy(config, spec), config.trainer
    kind, faults = type(policy), []
    if trainer.vf_warmup and kind.only_value_head is Policy.only_value_head:
        faults.append(
            f"trainer.vf_warmup={trainer.vf_warmup} would train all of {_own(config, kind)}, which does not say what "
            "its value head is: give it a method only_value_head, or set 0"
        )
    if not trainer.zero_initial_vf and kind.zero_value_head is Policy.zero_value_head:
        faults.append(
            f"trainer.zero_initial_vf=false has no effect on {_own(config, kind)}, whose value begins as it was drawn "
            "anyway: remove it, or give it a method zero_value_head"
        )
    if faults:
        raise ConfigError("; ".join(faults))
    return policy


def _own(config: Config, kind: type) -> str:
    return f"the {kind.__name__} of policy.factory={config.policy.factory!r}"


def vpt_shape(settings: PolicyConfig) -> VPTShape:
    """Sizes of the VPT network.

    Raises:
      ConfigError: policy.vpt names a size that there is not, or one that cannot be.
    """
    try:
        return shape_from_json(settings.vpt)
    except WeightsError as error:
        raise ConfigError(f"policy.vpt={settings.vpt}: {error}") from error


def with_sizes_from_file(config: Config) -> Config:
    """The settings with policy.vpt in place of policy.vpt_model, so that no other process needs that file.

    Raises:
      ConfigError: the file cannot be used.
    """
    if not config.policy.vpt_model:
        return config
    try:
        shape = read_model_file(_existing("policy.vpt_model", config.policy.vpt_model))
    except ValueError as error:
        raise ConfigError(f"policy.vpt_model: {error}") from error
    policy = dataclasses.replace(config.policy, vpt=json.loads(json.dumps(dataclasses.asdict(shape))), vpt_model="")
    return dataclasses.replace(config, policy=policy)


def pretrained_params(config: Config) -> Params | None:
    """Parameters (NumPy) that a new run begins with; None: they are drawn at random.

    Raises:
      ConfigError: policy.vpt_weights cannot be used.
    """
    if not config.policy.vpt_weights:
        return None
    path = _existing("policy.vpt_weights", config.policy.vpt_weights)
    try:
        return load_weights(vpt_shape(config.policy), path)
    except ValueError as error:
        raise ConfigError("policy.vpt_weights: " + " ".join(str(error).split())) from error


def _existing(setting: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise ConfigError(f"{setting}={path!r}: there is no such file or folder")
    return found
