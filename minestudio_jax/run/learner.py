"""How every host of a run makes its learner of the settings."""

from __future__ import annotations

from pathlib import Path

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer.checkpoint import CheckpointFailure
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import Publication
from minestudio_jax.utils.seeding import derived_seed


def make_trainer(
    config: Config,
    policy: Policy,
    spec: EnvironmentSpec,
    run_dir: Path,
    publication: Publication | None,
    collector: DeviceCollector | None,
    pretrained: Params | None,
) -> PPOTrainer:
    """See PPOTrainer; hosts must make theirs at the same time.

    Raises:
      ConfigError: the checkpoint there does not fit the settings, or there are some and none is whole.
    """
    try:
        return PPOTrainer(
            config.trainer,
            policy,
            spec,
            config.rollout.fragment_length,
            run_dir,
            derived_seed(config.run.seed, "learner"),
            publication,
            collector,
            pretrained,
            in_background=config.rollout.mode != "serial",
        )
    except (ValueError, CheckpointFailure) as error:
        raise ConfigError(str(error)) from error
