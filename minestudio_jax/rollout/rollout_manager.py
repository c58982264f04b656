"""RolloutManager: starts, feeds, watches and stops the rollout workers and the replay buffer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.envs.env import EnvironmentFailure, EnvironmentSpec
from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.rollout.policy_loading import HEAP_VARIABLES, PackedVersion
from minestudio_jax.rollout.replay_buffer import Lease, ReplayCounters
from minestudio_jax.rollout.replay_buffer_actor import MAX_CALLS, ReplayBufferActor, ReplayStatus
from minestudio_jax.rollout.rollout_actor import RolloutActor
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.utils.seeding import derived_seed

_POLL_S = 0.5  # between two looks at every worker
SIGNAL_GRACE_S = 1.0
_CPU_ONLY = {"env_vars": {"JAX_PLATFORMS": "cpu"}}  # an actor must never touch the learner's accelerator

log = logging.getLogger(__name__)


class RolloutFailure(RuntimeError):
    """The experience side cannot go on; the message says what failed and what to do."""


class RolloutManager:
    """The learner's view of the experience side. Ray must have been initialised.

    Workers that die are restarted with the newest policy, `rollout.max_worker_restarts` times in all. A worker
    whose code raises is not: that is a fault of the settings, and the run fails with its traceback.

    Args:
      config: the run's settings.
      session_id: this life of the trainer.
      log_dir: for the environments' logs.
      run_stops: set when the run has been told to stop; nothing is waited for or started any more.
    """

    def __init__(self, config: Config, session_id: str, log_dir: Path, run_stops: threading.Event) -> None:
        self._config = config
        self._run_stops = run_stops
        self._session_id = session_id
        self._log_dir = log_dir
        self._published: tuple[int, Path | PackedVersion] | None = None
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._lives = [0] * config.rollout.num_rollout_workers
        self._reports: dict[Any, int] = {}
        self.restarts = 0
        self.replay_counters = ReplayCounters()
        self._buffer: Any = (
            ray.remote(ReplayBufferActor)
            .options(num_cpus=0, runtime_env=_CPU_ONLY, max_concurrency=MAX_CALLS)
            .remote(
                config.replay,
                config.rollout.fragment_length,
                derived_seed(config.run.seed, "replay"),
            )
        )
        self._workers = [self._start_worker(i) for i in range(config.rollout.num_rollout_workers)]
        self._thread: threading.Thread | None = None

    def wait_until_started(self, deadline_s: float) -> EnvironmentSpec | None:
        """Waits for every worker's environments, `deadline_s` at most.

        Returns:
          The environments' spec, the same for all; None if the run was told to stop.
        Raises:
          RolloutFailure: a worker failed, or Ray could not place it, or they differ.
        """
        waiting = [w.spec.remote() for w in self._workers]
        asked, ended = list(waiting), time.monotonic() + deadline_s
        while waiting:
            if self._run_stops.is_set():
                return None
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
            if waiting and time.monotonic() > ended:
                raise RolloutFailure(
                    f"{len(waiting)} of {len(asked)} rollout workers were not ready within run.start_deadline_s="
                    f"{self._config.run.start_deadline_s:g}; they ask for {len(asked)} x "
                    f"{self._config.rollout.num_cpus_per_worker:g} CPUs, the cluster has "
                    f"{ray.available_resources().get('CPU', 0):g} free of "
                    f"{ray.cluster_resources().get('CPU', 0):g}"
                )
        try:
            specs: Sequence[EnvironmentSpec] = ray.get(asked)
        except ray.exceptions.RayError as error:
            raise RolloutFailure(f"a rollout worker could not start its environments: {_reason(error)}") from error
        if any(spec != specs[0] for spec in specs):
            raise RolloutFailure(f"the rollout workers' environments differ: {specs}")
        return specs[0]

    def watch(self, on_report: Callable[[int, WorkerReport], None]) -> None:
        """Begins to collect the workers' reports and to replace workers that die.

        Args:
          on_report: called from the manager's thread with (worker id, report) about twice a second.
        """
        self._thread = threading.Thread(target=self._watch, args=(on_report,), name="rollout-manager", daemon=True)
        self._thread.start()

    def publish(self, version: int, where: Path | PackedVersion) -> None:
        """Tells buffer and workers of a new policy version; never waits for them."""
        with self._lock:
            self._published = (version, where)
            self._buffer.set_version.remote(self._session_id, version)
            for worker in self._workers:
                worker.load_policy.remote(version, where)

    @property
    def published_version(self) -> int:
        """The newest version that workers and buffer were told; 0 before the first."""
        return self._published[0] if self._published is not None else 0

    def fetch(self, num_fragments: int, timeout_s: float, ahead: int = 0) -> list[SampleFragment] | None:
        """Fragments for one iteration, or None if there are not enough within `timeout_s`.

        A fragment whose producer died with it is replaced by another one and counted as lost.

        Args:
          num_fragments: of the iteration.
          timeout_s: seconds.
          ahead: versions that will have been published, beyond the newest one, when they are trained on.
        Raises:
          RolloutFailure: the experience side failed.
        """
        self.raise_error()
        lease = self._lease(num_fragments, timeout_s, ahead)
        fragments: list[SampleFragment] = []
        while lease is not None:
            lost, unused = [], []
            for entry in lease.entries:
                if len(fragments) == num_fragments:
                    unused.append(entry.metadata.id)
                    continue
                try:
                    fragments.append(ray.get(entry.reference, timeout=self._config.run.stall_deadline_s))
                except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError):
                    lost.append(entry.metadata.id)
            self._buffer.release.remote(lease.id, lost, unused)
            if len(fragments) == num_fragments:
                return fragments
            lease = None
            while lease is None and not self._stop.is_set():
                self.raise_error()
                lease = self._lease(num_fragments - len(fragments), _POLL_S, ahead)
        return None

    def status(self, timeout_s: float = 5.0) -> ReplayStatus:
        """Of the buffer."""
        return ray.get(self._buffer.status.remote(), timeout=timeout_s)

    def metrics(self) -> dict[str, float]:
        """Counters since the start of this process, by metric name."""
        return {"rollout/worker_restarts": float(self.restarts), **self.replay_counters.metrics()}

    def raise_error(self) -> None:
        """Raises what made the experience side fail, if it did."""
        if self._error is not None:
            raise self._error

    def close(self, deadline_s: float) -> None:
        """Stops every worker, at the latest after `deadline_s`, then the buffer."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        stops = [w.stop.remote() for w in self._workers]
        _, unfinished = ray.wait(stops, num_returns=len(stops), timeout=deadline_s)
        if unfinished:
            log.warning("%d rollout workers did not stop within %g s and were killed", len(unfinished), deadline_s)
        for actor in [*self._workers, self._buffer]:
            ray.kill(actor)

    def _lease(self, num_fragments: int, timeout_s: float, ahead: int) -> Lease | None:
        try:
            lease, self.replay_counters = ray.get(self._buffer.lease.remote(num_fragments, timeout_s, ahead))
        except ray.exceptions.RayActorError as error:
            raise RolloutFailure(f"the replay buffer died: {error}; start the same command again") from error
        return lease

    def _start_worker(self, worker_id: int) -> Any:
        return (
            ray.remote(RolloutActor)
            .options(
                num_cpus=self._config.rollout.num_cpus_per_worker,
                runtime_env={"env_vars": {**_CPU_ONLY["env_vars"], **HEAP_VARIABLES}},
                max_concurrency=4,  # report and load_policy must not wait for each other
            )
            .remote(
                self._config,
                worker_id,
                self._lives[worker_id],
                self._session_id,
                self._log_dir,
                self._buffer,
            )
        )

    def _watch(self, on_report: Callable[[int, WorkerReport], None]) -> None:
        """Collects reports and heals dead workers until told to stop."""
        try:
            while not self._stop.wait(_POLL_S):
                for worker_id, worker in enumerate(self._workers):
                    if worker_id not in self._reports.values():
                        self._reports[worker.report.remote()] = worker_id
                ready, _ = ray.wait(list(self._reports), num_returns=len(self._reports), timeout=_POLL_S)
                for reference in ready:
                    worker_id = self._reports.pop(reference)
                    try:
                        on_report(worker_id, ray.get(reference))
                    except ray.exceptions.RayActorError as error:
                        # A signal sent to every process of a job may have reached Ray before this one; calls to a
                        # Ray that is gone would end this process.
                        if self._run_stops.wait(SIGNAL_GRACE_S):
                            return
                        self._heal(worker_id, error)
        except BaseException as error:
            self._error = error if isinstance(error, RolloutFailure) else RolloutFailure(_reason(error))

    def _heal(self, worker_id: int, error: BaseException) -> None:
        if self.restarts >= self._config.rollout.max_worker_restarts:
            raise RolloutFailure(
                f"rollout worker {worker_id} died and rollout.max_worker_restarts="
                f"{self._config.rollout.max_worker_restarts} is used up: {error}"
            )
        self.restarts += 1
        self._lives[worker_id] += 1
        log.warning("rollout worker %d died and is started again: %s", worker_id, error)
        with self._lock:
            self._workers[worker_id] = self._start_worker(worker_id)
            if self._published is not None:
                self._workers[worker_id].load_policy.remote(*self._published)


def _reason(error: BaseException) -> str:
    """What a worker said; with the traceback only if it is nothing that we raise on purpose."""
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, (EnvironmentFailure, ConfigError)) else str(error)
