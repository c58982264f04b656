"""RolloutManager: the learner's view of the experience side, the rollout workers and the replay buffer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from minestudio_jax.config import Config, ConfigError, environments_deadline_s
from minestudio_jax.envs.env import EnvironmentFailure, EnvironmentSpec
from minestudio_jax.rollout.fleet_member import WorkerStatus
from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata, SampleFragment
from minestudio_jax.rollout.fragment_reading import read_fragments
from minestudio_jax.rollout.placement import room
from minestudio_jax.rollout.policy_loading import PackedVersion
from minestudio_jax.rollout.replay_chunk import Entry, Lease
from minestudio_jax.rollout.replay_counters import ReplayCounters
from minestudio_jax.rollout.replay_service import ReplayService, RolloutFailure
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.rollout.worker_fleet import OnReport, WorkerFleet

__all__ = ["SIGNAL_GRACE_S", "RolloutFailure", "RolloutManager", "RolloutStatus"]

_POLL_S = 0.5  # between two looks at every worker
_LOOK_S = 0.05  # between two looks whether the first environment is there
SIGNAL_GRACE_S = 1.0
_STARVED_AFTER_S = 10.0  # by then what was under way has arrived


@dataclass(frozen=True)
class RolloutStatus:
    """The experience side as it was last seen.

    Attributes:
      session_id: this life of the trainer.
      version: newest published policy version; 0 before the first.
      target: workers that there should be.
      workers: those that there are.
      replay: counters of the buffer.
      replay_ready: fragments that could be trained on now.
      replay_restarts: buffers that were replaced.
      replay_error: why the last one was, or "".
    """

    session_id: str
    version: int
    target: int
    workers: Sequence[WorkerStatus]
    replay: ReplayCounters
    replay_ready: int
    replay_restarts: int
    replay_error: str


@dataclass(frozen=True)
class Lent:
    """A fragment of a lease, as others than the leaseholder find it: `entries` of the buffer's actor gives it to them.

    Attributes:
      buffer: name of the actor.
      lease_id: of the lease.
      entry: the fragment.
    """

    buffer: str
    lease_id: str
    entry: Entry


class RolloutManager:
    """Starts, feeds, watches and stops the rollout workers and the replay buffer. Ray must have been initialised.

    Workers that die or hang, from the beginning on, are restarted with the newest policy, up to
    `rollout.max_worker_restarts` times an hour, and so is the buffer, `replay.max_restarts` times. A worker whose code
    raises is not: that is a fault of the settings, and the run fails with its traceback. If its environments cannot be
    built, it fails only where no other worker plays.

    Args:
      config: the run's settings.
      session_id: this life of the trainer.
      log_dir: for the environments' logs.
      run_stops: set when the run has been told to stop; nothing is waited for or started any more.
    """

    def __init__(self, config: Config, session_id: str, log_dir: Path, run_stops: threading.Event) -> None:
        self._config, self._session_id, self._run_stops = config, session_id, run_stops
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._reporting = threading.Lock()
        self._untold: list[tuple[int, WorkerReport]] = []
        self._on_report: OnReport = lambda worker_id, report: self._untold.append((worker_id, report))
        self.published_version = 0
        self._wanted = 0  # fragments that the learner waits for
        self._starved_since: float | None = None
        self._replay = ReplayService(config, session_id)
        self._fleet = WorkerFleet(config, session_id, log_dir, self._replay.handle)
        self._thread = threading.Thread(target=self._watch, name="rollout-manager", daemon=True)
        self._thread.start()

    def wait_until_started(self) -> EnvironmentSpec | None:
        """Waits for the first environment, and for no other: the rest of the workers go on starting.

        Returns:
          The environments' spec, the same for all; None if the run was told to stop.
        Raises:
          RolloutFailure: a worker failed, none got a process within run.start_deadline_s, or none of the environments
            was there in time.
        """
        began, limit_s = time.monotonic(), environments_deadline_s(self._config)
        run, env = self._config.run, self._config.env
        while self._fleet.spec is None:
            self.raise_error()
            if self._run_stops.wait(_LOOK_S):
                return None
            waited_s = time.monotonic() - began
            if waited_s > run.start_deadline_s and not self._fleet.placed:
                raise RolloutFailure(
                    f"none of {self._fleet.target} rollout workers had a process within run.start_deadline_s="
                    f"{run.start_deadline_s:g}, {room(self._config.rollout, self._fleet.target)}"
                )
            if waited_s > limit_s:
                settings = f"run.start_deadline_s={run.start_deadline_s:g}"
                if env.factory:
                    settings += (
                        f" and twice env.start_deadline_s={env.start_deadline_s:g} and env.reset_deadline_s="
                        f"{env.reset_deadline_s:g}"
                    )
                raise RolloutFailure(f"no environment was there within {limit_s:g} s, {settings}: see their logs")
        return self._fleet.spec

    def watch(self, on_report: OnReport) -> None:
        """Has the workers' reports told, those first that came since the start.

        Args:
          on_report: called with (worker id, report), from the manager's thread about twice a second, and with the last
            reports by `close`.
        """
        with self._reporting:
            for worker_id, report in self._untold:
                on_report(worker_id, report)
            self._untold, self._on_report = [], on_report

    def publish(self, version: int, where: Path | PackedVersion) -> None:
        """Tells buffer and workers of a new policy version; never waits for them.

        Args:
          version: its number.
          where: what the workers read it from.
        """
        self._replay.tell(version)
        self._fleet.publish(version, where)
        self.published_version = version

    def permit(self, num_fragments: int) -> None:
        """With rollout.synchronous: has the workers play that many fragments, with the newest version told."""
        self._fleet.permit(self.published_version, -(-num_fragments // self._fleet.target))

    def set_num_workers(self, number: int) -> str:
        """Has workers added, or the youngest drained; does not wait for it.

        Args:
          number: of workers that there should be, at least 1.
        Returns:
          What will happen, in a sentence.
        """
        if number < 1:
            raise ValueError(f"{number} rollout workers: at least 1 must be left")
        before, self._fleet.target = self._fleet.target, number
        if number < before:
            return f"{before - number} of {before} rollout workers are drained"
        if number == before:
            return f"there are {number} rollout workers already"
        need = self._config.rollout.num_cpus_per_worker * (number - before)
        free, total = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
        sentence = f"{number - before} rollout workers are started besides the {before} there were"
        if need > free:
            sentence += f"; they ask for {need:g} CPUs, of Ray's {total:g} are {free:g} free: some wait for more"
        return sentence

    def fetch(self, num_fragments: int, timeout_s: float, ahead: Callable[[], int]) -> list[SampleFragment] | None:
        """Fragments for one iteration, or None if there are not enough within `timeout_s`.

        A fragment whose producer died with it is replaced by another one and counted as lost.

        Args:
          num_fragments: of the iteration.
          timeout_s: seconds.
          ahead: gives how many versions will have been published, beyond the newest one, when they are trained on. It
            is asked anew whenever there is something to wait for: the learner may have gone on meanwhile.
        Raises:
          RolloutFailure: the experience side failed.
        """
        self.raise_error()
        if self._run_stops.is_set():
            # Whoever told this process to stop may have told Ray, too: reading from a Ray that is gone would end it.
            self._stop.wait(timeout_s)
            return None
        lease = self._lease(num_fragments, timeout_s, ahead)
        fragments: list[SampleFragment] = []
        while lease is not None:
            missing = num_fragments - len(fragments)
            there, lost = read_fragments(lease.entries, self._ending, self._run_stops, self.is_gone)
            if self._run_stops.is_set():
                return None
            fragments += there[:missing]
            self._replay.release(lease, lost, [f.metadata.id for f in there[missing:]])
            if len(fragments) == num_fragments:
                return fragments
            if self._config.rollout.synchronous:
                self.permit(num_fragments - len(fragments))
            lease = None
            while lease is None and not self._ending():
                self.raise_error()
                lease = self._lease(num_fragments - len(fragments), _POLL_S, ahead)
        return None

    def fetch_with_others(
        self,
        num_fragments: int,
        timeout_s: float,
        ahead: Callable[[], int],
        read: Callable[[Sequence[Lent]], Collection[FragmentId] | None],
    ) -> bool:
        """As `fetch`, for fragments that several hosts read; they are lent until each host has its part.

        Args:
          num_fragments, timeout_s, ahead: as in `fetch`.
          read: called with fragments, as many as are wanted; has each host read its part of them, and gives those that
            are lost, which are then replaced, or None if it is time to stop. It is called until nothing was lost.
        Returns:
          Whether the last call lost nothing; False if there were not enough in time, or it is time to stop.
        Raises:
          RolloutFailure: the experience side failed.
        """
        self.raise_error()
        if self._run_stops.is_set():
            self._stop.wait(timeout_s)
            return False
        lent: list[Lent] = []
        leases: list[tuple[Lease, set[FragmentId], list[FragmentId]]] = []  # with what was lost and what was not needed
        while not self._ending():
            self.raise_error()
            lease = self._lease(num_fragments - len(lent), timeout_s, ahead)
            if lease is None and not leases:
                return False
            if lease is None:
                continue
            new = [Lent(self._replay.name, lease.id, entry) for entry in lease.entries]
            missing = num_fragments - len(lent)
            leases.append((lease, set(), [one.entry.metadata.id for one in new[missing:]]))
            lent += new[:missing]
            lost = read(lent)
            if lost is None:
                return False
            for one in lent:
                if one.entry.metadata.id in lost:
                    next(gone for of, gone, _ in leases if of.id == one.lease_id).add(one.entry.metadata.id)
            lent = [one for one in lent if one.entry.metadata.id not in lost]
            if not lost:
                for of, gone, unused in leases:
                    self._replay.release(of, gone, unused)
                return True
            if self._config.rollout.synchronous:
                self.permit(num_fragments - len(lent))
        return False

    def _lease(self, num_fragments: int, timeout_s: float, ahead: Callable[[], int]) -> Lease | None:
        versions = ahead()
        # Only what the learner has to wait for: while it learns synchronous workers rest.
        self._wanted = num_fragments if versions == 0 else 0
        lease = self._replay.lease(num_fragments, timeout_s, versions)
        if lease is not None:
            self._wanted = 0
        return lease

    def is_gone(self, metadata: FragmentMetadata) -> bool:
        """Whether the worker that made a fragment is gone, and its data with it."""
        return self._fleet.is_gone(metadata.worker_id, metadata.worker_life)

    @property
    def replay_counters(self) -> ReplayCounters:
        """Of the buffer, as they were last told."""
        return self._replay.counters

    def status(self) -> RolloutStatus:
        """Everything as it was last seen; asks nobody."""
        replay = self._replay
        return RolloutStatus(
            self._session_id,
            self.published_version,
            self._fleet.target,
            self._fleet.status(),
            replay.counters,
            replay.ready,
            replay.restarts,
            replay.last_error,
        )

    def metrics(self) -> dict[str, float]:
        """Counters since the start of this process, by metric name."""
        sender = self._fleet.counters()
        return {
            "rollout/workers": float(sum(w.state == "acting" for w in self._fleet.status())),
            "rollout/worker_restarts": float(self._fleet.restarts),
            "rollout/abandoned_fragments": float(sender.abandoned),
            "rollout/object_store_full": float(sender.store_full),
            **self._replay.counters.metrics(),
            "replay/restarts": float(self._replay.restarts),
        }

    def raise_error(self) -> None:
        """Raises what made the experience side fail, if it did."""
        if self._error is not None:
            raise self._error

    def close(self, deadline_s: float) -> None:
        """Stops every worker, at the latest after `deadline_s`, then the buffer. Nothing is reported after that."""
        self._stop.set()
        self._thread.join()
        self._fleet.close(self._report, deadline_s)
        self._replay.close()

    def _watch(self) -> None:
        """Looks after workers and buffer until told to stop."""
        try:
            while not self._stop.wait(_POLL_S):
                # A signal sent to every process of a job may have reached Ray before this one; calls to a Ray that is
                # gone would end this process.
                if self._run_stops.is_set():
                    return
                self._fleet.turn(self._report, _POLL_S, self._replay.pending(), self._told_to_stop)
                if not self._run_stops.is_set() and self._replay.heal(self._run_stops, SIGNAL_GRACE_S):
                    self._fleet.rewire(self._replay.handle, self._replay.restarts)
                self._permit_what_is_missing()
                self._fleet.end_drained(self._report, self._replay.producers, self._replay.looked_at)
        except BaseException as error:
            if isinstance(error, RolloutFailure):
                self._error = error
            else:
                self._error = RolloutFailure(_reason(error))
                self._error.__cause__ = error
        finally:
            self._replay.give_up()

    def _permit_what_is_missing(self) -> None:
        """With rollout.synchronous: whoever acts plays what the learner waits for and nobody may play any more.

        It was lost with a buffer, or is the share of a worker that was drained or has not come back.
        """
        missing = self._wanted - self._replay.ready
        resting = self._fleet.resting() if self._config.rollout.synchronous and self._wanted and missing > 0 else 0
        if not resting:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = time.monotonic()
        elif time.monotonic() - self._starved_since > _STARVED_AFTER_S:
            self._starved_since = None
            self._fleet.permit(self.published_version, -(-missing // resting))

    def _report(self, worker_id: int, report: WorkerReport) -> None:
        with self._reporting:
            self._on_report(worker_id, report)

    def _ending(self) -> bool:
        return self._stop.is_set() or self._run_stops.is_set()

    def _told_to_stop(self) -> bool:
        """After a death, which may have been part of an end that this process is yet to hear of."""
        return self._run_stops.wait(SIGNAL_GRACE_S)


def _reason(error: BaseException) -> str:
    """What a worker said; with the traceback only if it is nothing that we raise on purpose."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, (EnvironmentFailure, ConfigError)):
        return str(cause)
    return str(error) if isinstance(error, RayError) else f"{type(error).__name__}: {error}"
