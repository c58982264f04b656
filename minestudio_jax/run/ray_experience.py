"""Experience from rollout workers: Ray, the manager and its workers as the conductor sees them."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.mesh_shape import fragments_per_iteration, sized_replay
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.environments import check_factory, embedded_spec
from minestudio_jax.rollout.rollout_manager import SIGNAL_GRACE_S, RolloutFailure, RolloutManager
from minestudio_jax.run import last_words, ray_cluster
from minestudio_jax.run.host_messages import Publish
from minestudio_jax.run.hosts import LeadHost
from minestudio_jax.run.policy_transport import make_publication
from minestudio_jax.run.ray_watch import RayWatch
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.run.run_directory import RunDirectory
from minestudio_jax.run.shares import leading_source
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer.batch import Share, fragment_bytes
from minestudio_jax.trainer.loader import FragmentSource
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import Publication
from minestudio_jax.utils.live_board import Board

_EXPLANATION_S = 1.0  # an error may come before the news that Ray is gone

log = logging.getLogger(__name__)


class RayExperience:
    """See `run.experience.Experience`."""

    def __init__(
        self, config: Config, directory: RunDirectory, board: Board, stop: StopSignal, needed: int, host: LeadHost
    ) -> None:
        config = dataclasses.replace(config, replay=sized_replay(config, jax.device_count()))
        self._config = directory.going_on(config)
        self._directory, self._board, self._stop, self._needed = directory, board, stop, needed
        self._host = host
        self._manager: RolloutManager
        self._ray: RayWatch
        self._failure: RolloutFailure | None = None

    @staticmethod
    def check(config: Config, devices: int) -> None:
        if config.env.factory:
            check_factory(config)
        needed, replay = fragments_per_iteration(config.trainer, devices), sized_replay(config, devices)
        if replay.max_gib and not config.env.factory:
            spec = embedded_spec(config)
            size = needed * fragment_bytes(make_policy(config, spec), spec, config.rollout.fragment_length)
            if size > replay.max_gib * 2**30:
                raise ConfigError(
                    f"an iteration's {needed} fragments take {size / 2**30:.3g} GiB, replay.max_gib={replay.max_gib:g} "
                    "does not hold them: raise it, or make iterations smaller"
                )

    @property
    def steps(self) -> int:
        return self._manager.replay_counters.inserted_steps

    def start(self, cleanup: ExitStack) -> EnvironmentSpec | None:
        config = self._config
        address = config.run.ray_address
        self._board.stage(f"joining Ray at {address}" if address else "starting Ray")
        cleanup.callback(ray_cluster.stop_ray)
        ray_cluster.start_ray(config)
        self._stop.install()  # Ray has taken SIGTERM
        self._ray = RayWatch(self._end_without_ray)
        cleanup.callback(self._ray.close)
        ray_cluster.wait_for_resources(config)

        workers, envs = config.rollout.num_rollout_workers, config.rollout.num_envs
        self._board.stage(f"starting {workers} rollout worker(s) with {envs} environments each")
        self._manager = RolloutManager(config, uuid.uuid4().hex, self._directory.logs, self._stop.event)
        cleanup.callback(lambda: self._manager.close(config.run.stop_deadline_s))
        # The embedded world's spec is known beforehand, so the learner compiles while the workers start.
        if not config.env.factory:
            return embedded_spec(config)
        self._board.stage("waiting for the first environments")
        return self._manager.wait_until_started()

    def collector(self, policy: Policy) -> None:
        del policy

    def publication(self, policy: Policy, cleanup: ExitStack) -> Publication:
        return make_publication(self._config, policy, self._directory.path, self._manager.publish, cleanup)

    def connect(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> bool:
        if not self._config.env.factory:
            self._board.stage("waiting for the first environments")
            if self._manager.wait_until_started() is None:
                return False
        self._manager.watch(statistics.add)
        self._host.together(Publish())
        trainer.publish()
        self.proceed(trainer)

        fetch: FragmentSource = self._fetch
        if self._host.others:
            fetch = leading_source(
                self._manager,
                self._host.conversation,
                self._needed,
                trainer.batch_sharding,
                self._config.run.stall_deadline_s,
                self._stop.event,
            )

        def fetch_fresh(timeout_s: float, ahead: Callable[[], int]) -> Share | None:
            def versions() -> int:
                # Versions that the learner has made and that are not yet published count as well.
                return ahead() + max(0, trainer.counters.policy_version - self._manager.published_version)

            if self._ray.is_gone(0.0):  # to ask it would end this process
                self._stop.event.wait(timeout_s)
                return None
            try:
                return fetch(timeout_s, versions)
            except Exception as error:
                if not self._ray.is_gone(_EXPLANATION_S):
                    raise
                log.info("what came of the loss of Ray, which ends the run: %r", error)
                return None

        trainer.open(fetch_fresh)
        return True

    def _fetch(self, timeout_s: float, ahead: Callable[[], int]) -> Share | None:
        fragments = self._manager.fetch(self._needed, timeout_s, ahead)
        return None if fragments is None else Share.whole(fragments)

    def _end_without_ray(self, sentence: str) -> None:
        """Has the run save what it has and end. Calls of Ray would raise, wait for minutes, or end this process."""
        last_words.if_silent(
            f"{sentence}; the same command continues from the last checkpoint", self._directory.logs / "run.log"
        )
        # Whoever stops a job may signal all of its processes, Ray's too: that is an orderly end.
        if not self._stop.event.wait(SIGNAL_GRACE_S):
            self._failure = RolloutFailure(sentence)
            self._stop.request("the loss of Ray")

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    @property
    def ray_address(self) -> str:
        return self._config.run.ray_address or ray_cluster.own_address()

    def observe(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> None:
        del trainer, statistics  # workers report by themselves

    def proceed(self, trainer: PPOTrainer) -> None:
        if self._config.rollout.synchronous:
            trainer.flush_published(self._config.run.stall_deadline_s)
            self._manager.permit(self._needed)

    def metrics(self) -> dict[str, float]:
        return self._manager.metrics()

    def diagnosis(self) -> str:
        status = self._manager.status()
        states = ", ".join(f"worker {w.worker_id} {w.state}" for w in status.workers)
        return (
            f"the buffer has {status.replay_ready} fragments ready ({status.replay}), {states}; the environments' logs "
            "say why"
        )

    def status(self) -> Mapping[str, Any]:
        return dataclasses.asdict(self._manager.status())

    def set_num_workers(self, number: int) -> str:
        return self._manager.set_num_workers(number)
