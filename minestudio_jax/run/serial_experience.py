"""Experience collected in the learner's own process and thread, for debugging: no Ray, nothing runs beside anything."""

from __future__ import annotations

import dataclasses
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.mesh_shape import sized_replay
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.env_pool import ToldToStop
from minestudio_jax.rollout.environments import check_factory, make_pool
from minestudio_jax.rollout.fleet_member import WorkerStatus
from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.rollout.replay_buffer import ReplayBuffer
from minestudio_jax.rollout.replay_chunk import Entry
from minestudio_jax.rollout.rollout_manager import RolloutStatus
from minestudio_jax.rollout.rollout_worker import RolloutWorker
from minestudio_jax.run.hosts import LeadHost
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.run.run_directory import RunDirectory
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer.batch import Share
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import Publication
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.live_board import Board
from minestudio_jax.utils.seeding import derived_seed


class SerialExperience:
    """See `run.experience.Experience`.

    The worker acts when the learner asks for fragments that the buffer does not have, and rests otherwise. That is what
    a Ray worker does with rollout.synchronous: on a deterministic world one worker gives the same run either way.
    """

    def __init__(
        self, config: Config, directory: RunDirectory, board: Board, stop: StopSignal, needed: int, host: LeadHost
    ) -> None:
        del host  # the only one
        self._stop = stop
        self._config, self._directory, self._board, self._needed = directory.going_on(config), directory, board, needed
        self._session_id = uuid.uuid4().hex
        self._buffer = ReplayBuffer(
            sized_replay(config, jax.device_count()),
            config.rollout.fragment_length,
            derived_seed(self._config.run.seed, "replay"),
        )
        self._worker: RolloutWorker
        self._env_failures = 0

    @staticmethod
    def check(config: Config, devices: int) -> None:
        if config.env.factory:
            check_factory(config)
        sized_replay(config, devices)

    @property
    def steps(self) -> int:
        return self._buffer.counters.inserted_steps

    def start(self, cleanup: ExitStack) -> EnvironmentSpec | None:
        self._board.stage(f"starting {self._config.rollout.num_envs} environments in this process's care")
        try:
            self._pool = make_pool(self._config, 0, 0, self._directory.logs, self._session_id, stop=self._stop.event)
        except ToldToStop:
            return None
        cleanup.callback(self._pool.close)
        return self._pool.spec

    def collector(self, policy: Policy) -> None:
        del policy

    def publication(self, policy: Policy, cleanup: ExitStack) -> Publication:
        folder = self._directory.path / "published"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        abstract = policy.abstract_params()
        self._worker = RolloutWorker(self._config, 0, 0, self._session_id, self._pool, policy, self._take_in)

        def on_published(version: int, path: Path) -> None:
            self._buffer.set_version(self._session_id, version)
            self._worker.set_policy(version, policy_store.load_version(path, abstract))

        return Publication(folder, on_published, self._config.publish.dtype)

    def connect(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> bool:
        del statistics
        trainer.publish()
        trainer.open(self._fetch)
        return True

    def observe(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> None:
        del trainer
        report = self._worker.report()
        self._env_failures += sum(report.env_failures.values())
        statistics.add(0, report)

    ray_address = ""

    def proceed(self, trainer: PPOTrainer) -> None:
        del trainer

    def metrics(self) -> dict[str, float]:
        return self._buffer.counters.metrics()

    def raise_failure(self) -> None:
        """Nothing fails here that is not raised where it happens."""

    def diagnosis(self) -> str:
        return f"the buffer holds {self._buffer.counters}; the environments' logs say why"

    def status(self) -> Mapping[str, Any]:
        buffer = self._buffer
        worker = WorkerStatus(0, 0, "acting", buffer.version, self._env_failures, "")
        return dataclasses.asdict(
            RolloutStatus(self._session_id, buffer.version, 1, [worker], buffer.counters, buffer.ready(), 0, "")
        )

    def set_num_workers(self, number: int) -> str:
        raise ValueError(f"{number} rollout workers cannot be had with rollout.mode=serial, which has one")

    def _take_in(self, fragment: SampleFragment) -> None:
        self._buffer.add(Entry(fragment, fragment.sized().metadata))

    def _fetch(self, timeout_s: float, ahead: Callable[[], int]) -> Share | None:
        give_up = time.monotonic() + timeout_s
        while (lease := self._buffer.lease(self._needed, ahead())) is None:
            if time.monotonic() > give_up:
                return None
            self._worker.run_once()
        self._buffer.release(lease.id)
        return Share.whole(entry.reference for entry in lease.entries)
