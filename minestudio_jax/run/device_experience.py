"""Experience collected on the learner's own devices: no Ray, no other process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.mesh_shape import batch_shards, fragments_per_iteration
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.environments import embedded_spec, embedded_world
from minestudio_jax.rollout.episode_statistics import Episode
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.run.host_messages import Publish
from minestudio_jax.run.hosts import LeadHost
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.run.run_directory import RunDirectory
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.utils.live_board import Board
from minestudio_jax.utils.seeding import derived_seed


class DeviceExperience:
    """See `run.experience.Experience`."""

    def __init__(
        self, config: Config, directory: RunDirectory, board: Board, stop: StopSignal, needed: int, host: LeadHost
    ) -> None:
        del directory, stop
        self._config, self._board, self._needed, self._host = config, board, needed, host
        self.steps = 0

    @staticmethod
    def check(config: Config, devices: int) -> None:
        envs = config.rollout.num_envs
        shards = batch_shards(config.trainer, devices)
        if envs % shards:
            raise ConfigError(
                f"rollout.num_envs={envs} worlds cannot be spread over the {shards} parts that trainer.mesh="
                f"{config.trainer.mesh!r} splits batches into on {devices} devices: choose a multiple of them"
            )
        fragments = fragments_per_iteration(config.trainer, devices)
        if fragments % envs:
            raise ConfigError(
                f"rollout.num_envs={envs} does not divide an iteration's {fragments} fragments "
                "(trainer.batch_size_per_device x devices x batches_per_iteration), of which every world gives as "
                "many as the others: change either"
            )

    def start(self, cleanup: ExitStack) -> EnvironmentSpec | None:
        del cleanup
        return embedded_spec(self._config)

    def collector(self, policy: Policy) -> DeviceCollector:
        self._board.stage(f"generating {self._config.rollout.num_envs} worlds on the device")
        return make_collector(self._config, policy, self._needed)

    def publication(self, policy: Policy, cleanup: ExitStack) -> None:
        del policy, cleanup

    def connect(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> bool:
        del statistics
        self._host.together(Publish())
        trainer.publish()
        return True

    def observe(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> None:
        ended = trainer.last_ended
        assert ended is not None
        self.steps += ended.ended.size
        version, task = trainer.counters.policy_version - 1, self._config.env.task
        episodes = [
            Episode(
                float(ended.total_reward[where]),
                float(ended.discounted_return[where]),
                int(ended.length[where]),
                None if ended.success is None else bool(ended.success[where]),
                task,
                version,
                {term: float(paid[where]) for term, paid in ended.reward_terms.items()},
            )
            for where in zip(*np.nonzero(ended.ended), strict=True)
        ]
        statistics.add(0, WorkerReport(episodes=episodes, version=version))

    ray_address = ""

    def proceed(self, trainer: PPOTrainer) -> None:
        del trainer

    def metrics(self) -> dict[str, float]:
        return {}

    def raise_failure(self) -> None:
        """Nothing fails here that is not raised where it happens."""

    def diagnosis(self) -> str:
        return "collecting on the device does not wait; this is a bug"

    def status(self) -> Mapping[str, Any]:
        return {}

    def set_num_workers(self, number: int) -> str:
        raise ValueError(f"num_rollout_workers={number}: rollout.mode='device' has no rollout workers")


def make_collector(config: Config, policy: Policy, needed: int) -> DeviceCollector:
    """What every host collects with; `needed` is fragments per iteration."""
    return DeviceCollector(
        policy,
        embedded_world(config, config.env.task),
        sharding.make_mesh(config.trainer),
        config.rollout.num_envs,
        needed // config.rollout.num_envs,
        config.rollout.fragment_length,
        (config.env.height, config.env.width),
        derived_seed(config.run.seed, "environments", 0, 0),
        config.trainer.discount,
    )
