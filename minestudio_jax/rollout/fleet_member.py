"""FleetMember: one rollout worker through all its lives, as its fleet sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from minestudio_jax.config import Config
from minestudio_jax.rollout.fragment_sender import SenderCounters
from minestudio_jax.rollout.placement import room
from minestudio_jax.rollout.policy_loading import PackedVersion
from minestudio_jax.rollout.rollout_actor import ActorReport

_FIRST_BACKOFF_S = 0.5  # before a worker that died is started again; doubles with every death soon after
_LONGEST_BACKOFF_S = 60.0
_HEALTHY_AFTER_S = 60.0  # a worker that lived so long begins with the first back-off again


@dataclass(frozen=True)
class WorkerStatus:
    """One rollout worker as it was last seen.

    Attributes:
      worker_id: its number; a worker that is replaced keeps it.
      life: how many times it had been started before.
      state: "waiting" (its process is not there: Ray has still to place or to start it), "starting" its environments,
        "acting", "draining" or "dead" (about to be started again).
      version: policy version it acts with; -1 before the first.
      env_failures: since its start.
      last_error: why it died last, or "".
    """

    worker_id: int
    life: int
    state: str
    version: int
    env_failures: int
    last_error: str


@dataclass
class FleetMember:
    """A worker's actor, what it was asked and told, and what it last said.

    `tell` and `permit` may be called from any thread, the rest from the manager's.

    Attributes:
      worker_id: its number.
      place: reserved for it by Ray; None if it needs nothing.
      lock: the fleet's.
      life: how many times it had been started before.
      actor: of this life; None while dead.
      started_at, asked_at: `time.monotonic()`.
      waiting_said: the log says that this life waits for its process.
      proven: an earlier life has acted: its environments can be built there.
      answered: the actor has answered a report once, so it has been placed and runs.
      call: the report that is waited for.
      told: newest version it was told of, by `telling`, a call that it answers at once.
      permitted: number of the last permission it was given.
      restart_at: when a dead one is started again.
      drain: the call that drains it, until it is answered, at `drained_at`; the worker is killed after `drain_until`.
      rests: it was, at its last report, done with what it was permitted.
      still_s: at its last report: for how long the thread that acts had not gone on.
      sender: of this life.
      former_senders: of the lives before.
    """

    worker_id: int
    place: Any
    lock: threading.Lock
    life: int = 0
    state: str = "waiting"
    actor: Any = None
    started_at: float = 0.0
    waiting_said: bool = False
    proven: bool = False
    answered: bool = False
    call: Any = None
    asked_at: float = 0.0
    told: int = -1
    telling: Any = None
    permitted: int = 0
    restart_at: float = 0.0
    backoff_s: float = _FIRST_BACKOFF_S
    drain: Any = None
    drain_until: float = 0.0
    drained_at: float = 0.0
    version: int = -1
    env_failures: int = 0
    last_error: str = ""
    rests: bool = False
    still_s: float = 0.0
    sender: SenderCounters = field(default_factory=SenderCounters)
    former_senders: SenderCounters = field(default_factory=SenderCounters)

    @property
    def sender_total(self) -> SenderCounters:
        """Of all lives; the lock is the caller's."""
        return self.former_senders + self.sender

    @property
    def status(self) -> WorkerStatus:
        """For whoever looks at the run; the lock is the caller's."""
        return WorkerStatus(self.worker_id, self.life, self.state, self.version, self.env_failures, self.last_error)

    def start(self, new_actor: Callable[[], Any]) -> None:
        """Begins a life."""
        with self.lock:
            self.former_senders, self.sender = self.sender_total, SenderCounters()
            self.version, self.env_failures, self.rests, self.still_s = -1, 0, False, 0.0
            self.state, self.answered, self.call, self.waiting_said = "waiting", False, None, False
            self.told, self.telling, self.permitted = -1, None, 0
            self.started_at = time.monotonic()
            self.actor = new_actor()

    def ask(self) -> None:
        """Asks for a report, unless one is waited for."""
        if self.actor is not None and self.call is None:
            self.call, self.asked_at = self.actor.report.remote(), time.monotonic()

    def tell(self, version: int, where: Path | PackedVersion) -> None:
        """Tells of a policy version, unless it knows it or has still to answer for the last one."""
        with self.lock:
            if self.actor is None or not self.answered or self.told >= version:
                return
            if self.telling is not None and not ray.wait([self.telling], timeout=0)[0]:
                return
            self.told = version
            self.telling = self.actor.load_policy.remote(version, where)

    def permit(self, number: int, version: int, num_fragments: int) -> None:
        """Gives a permission, see RolloutWorker.permit, once and only while it acts."""
        with self.lock:
            if self.state == "acting" and self.permitted < number:
                self.permitted = number
                self.actor.permit.remote(version, num_fragments)

    def note(self, report: ActorReport) -> None:
        """Takes what it says of itself."""
        with self.lock:
            self.sender, self.rests, self.still_s = report.sender, report.rests, report.still_s
            if report.worker is not None:
                self.version = report.worker.version
                self.env_failures += sum(report.worker.env_failures.values())

    def is_there(self, state: str) -> None:
        """Takes a sign of life, and the state that it says it is in."""
        with self.lock:
            if self.state != "draining":
                self.state = state
            self.answered = True
        if time.monotonic() - self.started_at > _HEALTHY_AFTER_S:
            self.backoff_s = _FIRST_BACKOFF_S

    def overdue(self, config: Config) -> str:
        """Why it is no longer waited for; empty if it is."""
        deadline_s = config.rollout.report_deadline_s
        if self.still_s > deadline_s:
            return (
                f"the thread that acts has stood still for {self.still_s:.0f} s, more than "
                f"rollout.report_deadline_s={deadline_s:g}: in the policy, in the log of an environment, or in writing "
                "fragments"
            )
        if self.call is None:
            return ""
        waited_s = time.monotonic() - self.asked_at
        if self.answered and waited_s > deadline_s:
            return f"it did not report within rollout.report_deadline_s={deadline_s:g}"
        if not self.answered and waited_s > config.run.start_deadline_s:
            return (
                f"its process was not there within run.start_deadline_s={config.run.start_deadline_s:g}, "
                f"{room(config.rollout, 1)}"
            )
        return ""

    def die(self, reason: str) -> None:
        """Ends a life; the next one begins at `restart_at`."""
        with self.lock:
            self.proven = self.proven or self.state == "acting"
            self.state, self.last_error, self.actor, self.call = "dead", reason, None, None
            self.life += 1
            self.restart_at = time.monotonic() + self.backoff_s
            self.backoff_s = min(2 * self.backoff_s, _LONGEST_BACKOFF_S)

    def begin_to_drain(self, deadline_s: float) -> None:
        """Has it end acting and deliver what it has."""
        with self.lock:
            self.state = "draining"
            self.drain_until = time.monotonic() + deadline_s
            self.drain = self.actor.drain.remote(deadline_s)
