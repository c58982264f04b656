"""WorkerFleet: as many rollout workers as are wanted, wherever Ray places them; dead and hanging ones are replaced."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.rollout.crash_budget import LastHour
from minestudio_jax.rollout.env_worker import PermanentEnvironmentFailure
from minestudio_jax.rollout.fleet_member import FleetMember, WorkerStatus
from minestudio_jax.rollout.fragment_sender import SenderCounters
from minestudio_jax.rollout.placement import give_back, reserve, room, worker_options
from minestudio_jax.rollout.policy_loading import PackedVersion
from minestudio_jax.rollout.ray_failures import ACTOR_GONE
from minestudio_jax.rollout.replay_service import RolloutFailure
from minestudio_jax.rollout.rollout_actor import MAX_CALLS, ActorReport, RolloutActor
from minestudio_jax.rollout.rollout_worker import WorkerReport

_SAY_WAITING_AFTER_S = 15.0  # a process takes some seconds to be there, where there is room for it

log = logging.getLogger(__name__)

OnReport = Callable[[int, WorkerReport], None]


class WorkerFleet:
    """Starts, feeds, watches, adds and removes rollout workers.

    `turn`, `rewire` and `end_drained` belong to one thread, the manager's; the rest may be called from any.

    Args:
      config: the run's settings.
      session_id: this life of the trainer.
      log_dir: for the environments' logs.
      replay_buffer: handle that new workers get.
    """

    def __init__(self, config: Config, session_id: str, log_dir: Path, replay_buffer: Any) -> None:
        self._config, self._session_id, self._log_dir = config, session_id, log_dir
        self._replay_buffer = replay_buffer
        self._lock = threading.Lock()
        self._published: tuple[int, Path | PackedVersion] | None = None
        self._permission = (0, 0, 0)  # its number, and what RolloutWorker.permit takes
        self._members: dict[int, FleetMember] = {}
        self._lives: dict[int, int] = {}  # of the next start, of workers that are gone as well
        self._gone = SenderCounters()  # of workers that were removed
        self.target = config.rollout.num_rollout_workers
        self.restarts = 0
        self._deaths = LastHour()
        self.placed = False  # some worker has had a process
        self.spec: EnvironmentSpec | None = None  # of every worker's environments, once it is known
        for worker_id in range(self.target):
            self._add(worker_id)

    def status(self) -> list[WorkerStatus]:
        """Every worker, by number."""
        with self._lock:
            members = sorted(self._members.values(), key=lambda m: m.worker_id)
            return [member.status for member in members]

    def counters(self) -> SenderCounters:
        """Of all workers since the start of the run's process."""
        with self._lock:
            return sum((member.sender_total for member in self._members.values()), self._gone)

    def is_gone(self, worker_id: int, life: int) -> bool:
        """Whether that life of a worker is over, and what it stored with it."""
        with self._lock:
            member = self._members.get(worker_id)
            return member is None or member.life != life or member.actor is None

    def resting(self) -> int:
        """With rollout.synchronous: workers that act, if all of them have done what they may; otherwise 0."""
        with self._lock:
            acting = [m.rests for m in self._members.values() if m.state == "acting"]
        return len(acting) if all(acting) else 0

    def publish(self, version: int, where: Path | PackedVersion) -> None:
        """Tells the workers of a new policy version; never waits. Who has not heard of the last is told later."""
        with self._lock:
            self._published = (version, where)
            members = list(self._members.values())
        for member in members:
            member.tell(version, where)

    def permit(self, version: int, num_fragments: int) -> None:
        """With rollout.synchronous: lets every worker finish that many fragments more, with that version or a newer.

        A worker that does not act yet gets the last permission when it does.
        """
        with self._lock:
            permission = self._permission = (self._permission[0] + 1, version, num_fragments)
            members = list(self._members.values())
        for member in members:
            member.permit(*permission)

    def rewire(self, replay_buffer: Any, life: int) -> None:
        """Has all workers deliver to another replay buffer, the one after `life` others."""
        self._replay_buffer = replay_buffer
        for member in self._members.values():
            if member.actor is not None:
                member.actor.set_replay_buffer.remote(replay_buffer, life)

    def turn(self, on_report: OnReport, wait_s: float, others: list[Any], stopping: Callable[[], bool]) -> None:
        """Does what is to be done now, and waits up to `wait_s` for reports.

        Args:
          on_report: called with (worker id, report).
          wait_s: seconds.
          others: calls whose answers end the waiting as well.
          stopping: called after deaths; True if everything has been told to stop, and they are no news.
        Raises:
          RolloutFailure: more than `rollout.max_worker_restarts` deaths within an hour; workers' environments differ.
          RayError: a worker's code failed, or its environments cannot be built, though no other worker plays.
        """
        self._resize()
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.state == "dead" and now >= member.restart_at:
                self._start(member)
            member.ask()
            self._catch_up(member)
        calls = [m.call for m in self._members.values() if m.call is not None] + others
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=wait_s)
        died: list[tuple[FleetMember, str]] = []
        lost: list[tuple[FleetMember, str]] = []  # through no fault of theirs
        for member in list(self._members.values()):
            try:
                if member.call in ready:
                    self._take_report(member, on_report)
                if reason := member.overdue(self._config):
                    (died if member.answered else lost).append((member, reason))
            except ACTOR_GONE as error:
                (lost if _went_with_its_node(error) else died).append((member, str(error)))
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, PermanentEnvironmentFailure):
                    raise
                if any(m.state == "acting" for m in self._members.values() if m is not member):
                    lost.append((member, str(error.cause)))  # what is wrong is its node
                elif member.proven or member.state == "draining":
                    died.append((member, str(error.cause)))
                else:
                    raise
        if died and stopping():
            return
        for member, reason in died:
            self._charge(member, reason)
        replaced = [member for member, _ in died] + [member for member, _ in lost if member.answered]
        self.restarts += sum(member.state != "draining" for member in replaced)
        for member, reason in died + lost:
            self._bury(member, reason)
        self._say_who_waits()

    def close(self, on_report: OnReport, deadline_s: float) -> None:
        """Stops every worker, at the latest after `deadline_s`; `on_report` gets the last report of each.

        Their places go with the run: to give them back Ray would have to be alive, and all may have been told to end.
        """
        members = [m for m in self._members.values() if m.actor is not None]
        # What an earlier call has been told, and nobody has looked at yet, is not told again.
        unread = {call: m for m in members for call in (m.call, m.drain) if call is not None}
        stops = {m.actor.stop.remote(): m for m in members}
        calls = unread | stops
        if not calls:
            return
        answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=deadline_s)
        if unstopped := len(stops.keys() - set(answered)):
            log.warning("%d rollout workers did not stop within %g s and were killed", unstopped, deadline_s)
        for call in (call for call in calls if call in answered):
            with contextlib.suppress(ray.exceptions.RayError):
                self._note(calls[call], ray.get(call), on_report)
        for member in members:
            ray.kill(member.actor)

    def _add(self, worker_id: int) -> None:
        member = FleetMember(worker_id, reserve(self._config.rollout), self._lock, self._lives.get(worker_id, 0))
        self._start(member)
        with self._lock:
            self._members[worker_id] = member

    def _start(self, member: FleetMember) -> None:
        self._lives[member.worker_id] = member.life + 1
        options = worker_options(self._config.rollout, member.place)
        actor = ray.remote(RolloutActor).options(**options, max_concurrency=MAX_CALLS)
        identity = (member.worker_id, member.life, self._session_id)
        member.start(lambda: actor.remote(self._config, *identity, self._log_dir, self._replay_buffer))

    def _catch_up(self, member: FleetMember) -> None:
        """Tells a worker what it could not be told when the others were."""
        with self._lock:
            published, permission = self._published, self._permission
        if published is not None:
            member.tell(*published)
        member.permit(*permission)

    def _take_report(self, member: FleetMember, on_report: OnReport) -> None:
        call, member.call = member.call, None
        report: ActorReport = ray.get(call)
        self.placed = True
        self.spec = self.spec or report.spec
        if report.spec not in (None, self.spec):
            raise RolloutFailure(
                f"the environments of rollout worker {member.worker_id} differ from those of the others: {report.spec} "
                f"and {self.spec}; the machines must have the same env.factory and tasks"
            )
        member.is_there(report.state)
        self._catch_up(member)
        self._note(member, report, on_report)

    def _note(self, member: FleetMember, report: ActorReport, on_report: OnReport) -> None:
        member.note(report)
        for warning in report.warnings:
            log.warning("rollout worker %d: %s", member.worker_id, warning)
        if report.worker is not None:
            on_report(member.worker_id, report.worker)

    def _say_who_waits(self) -> None:
        """Says, once for each start, which workers have no process long after they were started."""
        since = time.monotonic() - _SAY_WAITING_AFTER_S
        late = [
            m for m in self._members.values() if m.state == "waiting" and m.started_at < since and not m.waiting_said
        ]
        for member in late:
            member.waiting_said = True
        if late:
            log.warning(
                "the rollout workers %s have no process after %g s, %s: they start as soon as a node has room",
                sorted(m.worker_id for m in late),
                _SAY_WAITING_AFTER_S,
                room(self._config.rollout, len(late)),
            )

    def _charge(self, member: FleetMember, reason: str) -> None:
        """Counts a death. What went with its node, or never came to be on one, is none."""
        if member.state == "draining":
            return
        limit = self._config.rollout.max_worker_restarts
        if (deaths := self._deaths.add(time.monotonic())) > limit:
            raise RolloutFailure(
                f"rollout worker {member.worker_id} died; {deaths} deaths of workers within an hour are more than "
                f"rollout.max_worker_restarts={limit}: raise it, or find the cause, such as too little memory for so "
                f"many environments: {reason}"
            )

    def _end(self, member: FleetMember) -> None:
        """Kills a worker that died, as far as anybody can tell, and has the buffer forget what died with it."""
        # It may hang, or be cut off with its whole node, and would go on if it came back.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(member.actor)
        self._replay_buffer.lose.remote(member.worker_id, member.life)

    def _bury(self, member: FleetMember, reason: str) -> None:
        self._end(member)
        if member.state == "draining":
            log.warning("rollout worker %d died while it was drained: %s", member.worker_id, reason)
            self._remove(member)
            return
        log.warning("rollout worker %d died and is started again: %s", member.worker_id, reason)
        member.die(reason)

    def _resize(self) -> None:
        """Adds or drains workers until as many as are wanted remain."""
        staying = sorted(m.worker_id for m in self._members.values() if m.state != "draining")
        for worker_id in range(self.target + len(self._members)):
            if len(staying) >= self.target:
                break
            if worker_id not in self._members:
                self._add(worker_id)
                staying.append(worker_id)
        for worker_id in staying[self.target :]:
            self._drain(self._members[worker_id])

    def _drain(self, member: FleetMember) -> None:
        if member.actor is None or not member.answered:  # it has nothing to deliver, and may never have been placed
            if member.actor is not None:
                ray.kill(member.actor)
            self._remove(member)
            return
        member.begin_to_drain(self._config.rollout.drain_deadline_s)

    def end_drained(self, on_report: OnReport, producers: set[tuple[int, int]], looked_at: float) -> None:
        """Ends the workers that were drained, once nobody needs what they delivered: their data die with them.

        Args:
          on_report: called with (worker id, last report).
          producers: worker and life of those whose fragments the replay buffer held.
          looked_at: `time.monotonic()` when it did.
        """
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.state != "draining":
                continue
            if not member.drained_at and ray.wait([member.drain], timeout=0)[0]:
                call, member.drain, member.drained_at = member.drain, None, now
                with contextlib.suppress(ray.exceptions.RayError):
                    self._note(member, ray.get(call), on_report)
                self._replay_buffer.complete_no_more.remote(member.worker_id, member.life)
            needed = looked_at < member.drained_at or (member.worker_id, member.life) in producers
            if (not member.drained_at or needed) and now < member.drain_until:
                continue
            if not member.drained_at or needed:
                log.warning(
                    "rollout worker %d was not drained, or what it had delivered was not all taken, within "
                    "rollout.drain_deadline_s=%g: it is killed",
                    member.worker_id,
                    self._config.rollout.drain_deadline_s,
                )
            self._end(member)
            self._remove(member)

    def _remove(self, member: FleetMember) -> None:
        with self._lock:
            del self._members[member.worker_id]
            self._gone += member.sender_total
        give_back(member.place)


def _went_with_its_node(error: ray.exceptions.RayError) -> bool:
    """Whether Ray had placed an actor on a node that is gone, which it does until it notices."""
    return "its node has died" in str(error)  # Ray hands the reason on as text only
