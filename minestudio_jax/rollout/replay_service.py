"""ReplayService: the replay buffer as the learner's side sees it; one that dies is replaced by another."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import ray
import ray.exceptions

from minestudio_jax.config import Config
from minestudio_jax.rollout.crash_budget import LastHour
from minestudio_jax.rollout.fragment import FragmentId
from minestudio_jax.rollout.placement import buffer_options
from minestudio_jax.rollout.ray_failures import ACTOR_GONE
from minestudio_jax.rollout.replay_buffer_actor import MAX_CALLS, ReplayBufferActor, ReplayStatus
from minestudio_jax.rollout.replay_chunk import Lease
from minestudio_jax.rollout.replay_counters import ReplayCounters
from minestudio_jax.utils.seeding import derived_seed

NAMESPACE = "minestudio_jax"  # of Ray's, in which other hosts of the same run find the replay buffer

_WAIT_S = 0.5  # how often a waiting consumer looks whether it should give up

log = logging.getLogger(__name__)


class RolloutFailure(RuntimeError):
    """The experience side cannot go on; the message says what failed and what to do."""


class ReplayService:
    """Owns the replay buffer's actor, on this node. `heal` belongs to one thread, the rest may be called from any.

    The counters go on over all the buffers of a run: what one that died had held is lost. What reached it after its
    last answer was never counted, and comes again from those workers that had no answer either.

    Args:
      config: the run's settings.
      session_id: this life of the trainer.
    """

    def __init__(self, config: Config, session_id: str) -> None:
        self._config, self._session_id = config, session_id
        self._lock = threading.Lock()
        self._version: int | None = None
        self._counters = ReplayCounters()
        self._replaced = threading.Event()
        self._given_up = threading.Event()
        self._answered = False  # the present actor has once
        self._status_call: Any = None
        self._asked_at = 0.0
        self._warned = False
        self.restarts, self._deaths = 0, LastHour()
        self.ready = 0
        self.producers: set[tuple[int, int]] = set()  # at `looked_at`, a time.monotonic()
        self.looked_at = 0.0
        self.last_error = ""
        self._handle = self._start()

    @property
    def handle(self) -> Any:
        """The present actor."""
        return self._handle

    @property
    def name(self) -> str:
        """By which other programs find the present actor, in the namespace NAMESPACE."""
        return self._name(self.restarts)

    @property
    def counters(self) -> ReplayCounters:
        """As they were last told, half a second ago at most while the buffer lives."""
        return self._counters

    def tell(self, version: int) -> None:
        """Tells the newest published version; does not wait."""
        with self._lock:
            self._version = version
            self._handle.set_version.remote(self._session_id, version)

    def lease(self, num_fragments: int, timeout_s: float, ahead: int) -> Lease | None:
        """As ReplayBuffer.lease, waiting `timeout_s`; None too if there is no buffer now."""
        handle = self._handle
        call = handle.lease.remote(num_fragments, timeout_s, ahead)
        # An answer may be late, while a new buffer starts; it is waited for, or the lease would be held by nobody. A
        # buffer that hangs is killed by `heal`, which ends the call.
        while not ray.wait([call], timeout=_WAIT_S)[0]:
            if self._given_up.is_set():
                return None
        try:
            lease, counters = ray.get(call)
        except ACTOR_GONE:
            self._replaced.wait(timeout_s)
            return None
        self._note(handle, counters)
        return lease

    def give_up(self) -> None:
        """Ends all waiting: nobody heals the buffer any more."""
        self._given_up.set()

    def release(self, lease: Lease, lost: Iterable[FragmentId] = (), unused: Iterable[FragmentId] = ()) -> None:
        """As ReplayBuffer.release; does not wait. A buffer that came after the lease ignores it."""
        self._handle.release.remote(lease.id, list(lost), list(unused))

    def pending(self) -> list[Any]:
        """The call whose answer `heal` waits for; asks if there is none."""
        if self._status_call is None:
            self._status_call, self._asked_at = self._handle.status.remote(), time.monotonic()
        return [self._status_call]

    def heal(self, run_stops: threading.Event, grace_s: float) -> bool:
        """Looks at the answer to `pending`; replaces a buffer that died or hangs.

        Args:
          run_stops: set when everything has been told to stop; then nothing is replaced.
          grace_s: how long after a death that signal may come.
        Returns:
          Whether there is a new one.
        Raises:
          RolloutFailure: more than `replay.max_restarts` deaths within an hour.
        """
        setting, deadline_s = "rollout.report_deadline_s", self._config.rollout.report_deadline_s
        if not self._answered:
            setting, deadline_s = "run.start_deadline_s", self._config.run.start_deadline_s
        (call,) = self.pending()
        try:
            answered, _ = ray.wait([call], timeout=0)
            if answered:
                self._status_call = None
                status: ReplayStatus = ray.get(call)
                self.ready, self._answered = status.ready, True
                self.producers, self.looked_at = status.producers, self._asked_at
                self._note(self._handle, status.counters)
                return False
        except ACTOR_GONE as error:
            reason = f"died: {error}"
        else:
            if time.monotonic() - self._asked_at < deadline_s:
                return False
            reason = f"did not answer within {setting}={deadline_s:g}"
        if run_stops.wait(grace_s):
            return False
        self._replace(reason)
        return True

    def close(self) -> None:
        """Ends the actor."""
        self.give_up()
        ray.kill(self._handle)

    def _replace(self, reason: str) -> None:
        limit = self._config.replay.max_restarts
        if (deaths := self._deaths.add(time.monotonic())) > limit:
            raise RolloutFailure(
                f"the replay buffer {reason}; {deaths} of its deaths within an hour are more than replay.max_restarts="
                f"{limit}: is the machine short of memory? The same command continues"
            )
        self.restarts += 1
        self.last_error = reason
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._handle)
        self._status_call, self._answered = None, False
        with self._lock:
            lost, self._counters = self._counters.held, self._counters.after_loss()
            self._handle = self._start()
            if self._version is not None:
                self._handle.set_version.remote(self._session_id, self._version)
        self._replaced.set()
        self._replaced.clear()  # whoever waited has been woken
        log.warning("the replay buffer %s; a new one is started, %d fragments are lost", reason, lost)

    def _start(self) -> Any:
        rollout, life = self._config.rollout, self.restarts
        return (
            ray.remote(ReplayBufferActor)
            .options(name=self._name(life), namespace=NAMESPACE, max_concurrency=MAX_CALLS, **buffer_options())
            .remote(
                self._config.replay,
                rollout.fragment_length,
                derived_seed(self._config.run.seed, "replay", life),
                self._counters,
            )
        )

    def _name(self, life: int) -> str:
        return f"replay-buffer-{self._session_id}-{life}"

    def _note(self, handle: Any, counters: ReplayCounters) -> None:
        with self._lock:
            known = self._counters
            # Answers of two threads' calls may overtake each other, and those of a dead buffer come late.
            older = counters.inserted < known.inserted or (
                counters.inserted - counters.held < known.inserted - known.held
            )
            if handle is self._handle and not older:
                self._counters = counters
        if counters.over_limit and not self._warned:
            self._warned = True
            log.warning(
                "the learner waited while the replay buffer was full, so it was let grow: replay.max_gib=%g is too "
                "little for an iteration, or the settings of replay make producers and learner wait for each other",
                self._config.replay.max_gib,
            )
