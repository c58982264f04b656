"""ProcessEnvPool: an EnvPool over environments that each have an OS process of their own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import logging
import math
import select
import selectors
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec, Observation
from minestudio_jax.envs.host_protocol import StepOutcome, StepRequests
from minestudio_jax.rollout.crash_budget import CrashBudget
from minestudio_jax.rollout.env_pool import EnvironmentSteps, PoolCounters, ToldToStop, fitting
from minestudio_jax.rollout.env_worker import EnvLaunch, EnvWorker, InstanceFailure
from minestudio_jax.rollout.host_permits import Permit
from minestudio_jax.rollout.instance_log import InstanceLog, LogKeeper
from minestudio_jax.rollout.process_guard import ProcessGuard
from minestudio_jax.rollout.recycling import Recycling
from minestudio_jax.rollout.start_limit import StartLimit

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5  # before the first restart; doubles with every failure without a step in between
_LONGEST_BACKOFF_S = 60.0
_MAX_DOUBLINGS = 10
_CLOSE_GRACE_S = 2.0  # for all environments together, to close in good order when the pool does
_RECYCLE_GRACE_S = 10.0  # for one environment that is replaced
_PERMIT_RETRY_S = 0.2  # while other processes hold all the permits to start
_LOOK_S = 0.25  # how often who waits for the first start looks whether to give up
_LATE_S = 0.5  # in a step for longer than this, an environment is not waited for any more

_NO_OUTCOME = StepOutcome(0.0, False, False, {})


class _State(enum.Enum):
    WAITING = "waiting to be started"
    BUSY = "starting, resetting or stepping"
    READY = "ready to be received"
    RECEIVED = "with the caller"
    CLOSING = "closing, to be replaced"


@dataclass(slots=True)
class _Slot:
    """One environment of the pool through all its lives.

    Attributes:
      start_at: `time.monotonic()` before which it is not started while WAITING.
      permit: to start, until the first observation of this life is there.
      life: of the next worker; counts starts.
      steps: genuine ones of this life.
      barren_failures: since the last genuine step; sets the back-off.
      failed, outcome, final_obs: what the caller will be told of its last action.
      stepping: the caller's last action is under way; a failure before or after is none of that action's.
      sent_at: `time.monotonic()` of that action.
      late: that action is under way for so long that no batch waits for it.
      lost: how the instance broke while nothing was asked of it; told as the failure of the next action.
      proven: an instance has been ready once.
      first: what the caller will receive begins an episode.
      reset_seed: of the first reset of this life.
    """

    env_id: int
    state: _State = _State.WAITING
    worker: EnvWorker | None = None
    fd: int = -1
    start_at: float = 0.0
    permit: Permit | None = None
    life: int = 0
    steps: int = 0
    barren_failures: int = 0
    first: bool = True
    failed: bool = False
    stepping: bool = False
    sent_at: float = 0.0
    late: bool = False
    lost: InstanceFailure | None = None
    proven: bool = False
    outcome: StepOutcome = _NO_OUTCOME
    obs: Observation = dataclasses.field(default_factory=dict)
    final_obs: Observation | None = None
    reset_seed: int = 0


class ProcessEnvPool:
    """Environments of a user's factory, each in its own process; see EnvPool for what `recv` and `send` promise.

    Everything happens inside `recv`, by events: whatever is ready is handed over while the others start, reset, step,
    close or hang. Ended episodes are reset here, failed environments restarted with back-off, old ones replaced. An
    environment that dies while it waits for an action is found out at once and told as the failure of that action. An
    environment has one instance at most at any time: the next one starts when the one before it is gone.

    Args:
      launch: how environments are started.
      logs: what each environment prints goes there.
      seed: of the pool. Environment i's factory and its first reset in life k get seeds derived from (seed,
        launch.first_index + i, k); later resets go on with the environment's own stream.
      max_failures_per_hour: of all environments together; one more makes `recv` raise. Recycling is none.
      tasks: of each environment, a JSON value that is given to its factory as task=; None: nothing is given.
      recycling: when instances are replaced although they work.
      start_limit: how many may be on the way from their start to their first observation.
      stop: gives up the start of the first one, which the constructor waits for.
    Raises:
      EnvironmentFailure: no environment can be started.
      ToldToStop: it was.
    """

    spec: EnvironmentSpec
    lockstep = False

    def __init__(
        self,
        launch: EnvLaunch,
        logs: Sequence[InstanceLog],
        seed: int,
        *,
        max_failures_per_hour: int,
        tasks: Sequence[Any] | None = None,
        recycling: Recycling | None = None,
        start_limit: StartLimit | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.num_envs = num_envs = len(logs)
        self.counters = PoolCounters()
        self._launches = [
            launch if tasks is None else dataclasses.replace(launch, options={**launch.options, "task": tasks[i]})
            for i in range(num_envs)
        ]
        self._seed = seed
        self._budget = CrashBudget(num_envs, max_failures_per_hour, launch.factory)
        self._recycling = recycling or Recycling()
        self._start_limit = start_limit or StartLimit("", 0)
        self._slots = [_Slot(env_id) for env_id in range(num_envs)]
        self._ready: collections.deque[_Slot] = collections.deque()  # in the order in which they got ready
        self._awaited = 0  # environments in a step, but for the late ones
        self._spec_known = self._closed = False
        self._dying: list[EnvWorker] = []
        # `time.monotonic()` when deadlines must be looked at, and when a start may be due. Not before that one does
        # happen: what is asked later only brings the former forward, and an answer does not put it off.
        self._check_at, self._start_at = math.inf, 0.0
        self._poll = select.epoll()
        self._slot_of_fd: dict[int, _Slot] = {}
        self._guard = ProcessGuard()
        self._logs, self._log_keeper = logs, LogKeeper(logs)
        try:
            while not self._spec_known:
                if stop is not None and stop.is_set():
                    raise ToldToStop("before an environment had started")
                self._wait_for_event(time.monotonic() + _LOOK_S)
        except BaseException:
            self.close()
            raise

    def recv(
        self, timeout_s: float, batch_sizes: Sequence[int] | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        """As EnvPool.recv; of an environment in a step for more than half a second it expects nothing.

        Raises:
          EnvironmentFailure: more than max_failures_per_hour failures within an hour, three times as many starts as
            environments without one getting ready, or a failure that no restart can heal.
        """
        give_up = time.monotonic() + timeout_s
        # At least once: takes all that has come already.
        self._wait_for_event(0.0 if self._ready else give_up)
        while not self._ready:
            if time.monotonic() >= give_up:
                return None
            self._wait_for_event(give_up)
        sizes = (self.num_envs,) if batch_sizes is None else batch_sizes
        if max_wait_s > 0.0:
            enough = time.monotonic() + max_wait_s
            while len(self._ready) < sizes[-1] and self._awaited and time.monotonic() < enough:
                self._wait_for_event(enough)
        return self._hand_over([self._ready.popleft() for _ in range(fitting(len(self._ready), sizes))])

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray, version: int = 0) -> None:
        """As EnvPool.send.

        Raises:
          ValueError: an environment is not with the caller, or the components are not those of the spec.
        """
        if action.keys() != self.spec.action.keys():
            raise ValueError(f"the action has components {sorted(action)}, the spec {sorted(self.spec.action)}")
        slots, requests = [self._slots[i] for i in env_id.tolist()], self._requests.pack(action, version)
        if len(requests) != len(slots) or len(set(env_id.tolist())) != len(slots):
            raise ValueError(f"{len(requests)} actions for the environments {env_id.tolist()}: give one for each")
        for slot in slots:
            if slot.state is not _State.RECEIVED:
                raise ValueError(
                    f"environment {slot.env_id} is {slot.state.value}: receive it before sending it an action"
                )
        now = time.monotonic()
        for slot, request in zip(slots, requests, strict=True):
            slot.state, slot.stepping, slot.sent_at = _State.BUSY, True, now
            if slot.lost is not None:
                self._check_at = now
            elif slot.worker is not None:
                slot.worker.step(request, now)
        self._awaited += len(slots)
        self._check_at = min(self._check_at, now + min(_LATE_S, self._launches[0].step_deadline_s))

    def attend(self) -> None:
        """As EnvPool.attend."""
        self._wait_for_event(0.0)

    @property
    def marker(self) -> str:
        """With which the marker of every process of this pool begins, see ProcessGuard."""
        return self._guard.marker

    def pids(self) -> list[int | None]:
        """The process of each environment; None while it has none."""
        return [None if slot.worker is None or slot.lost is not None else slot.worker.pid for slot in self._slots]

    def close(self) -> None:
        """As EnvPool.close; gives the environments two seconds to close in good order."""
        if self._closed:
            return
        self._closed = True
        workers = {slot.worker for slot in self._slots if slot.worker is not None and slot.lost is None}
        self._poll.close()
        with selectors.DefaultSelector() as still_open:
            for worker in workers:
                worker.ask_to_close()
                still_open.register(worker, selectors.EVENT_READ)
            give_up = time.monotonic() + _CLOSE_GRACE_S
            while still_open.get_map() and (left_s := give_up - time.monotonic()) > 0:
                for key, _ in still_open.select(left_s):
                    if isinstance(key.fileobj, EnvWorker) and key.fileobj.has_ended():
                        still_open.unregister(key.fileobj)
        for worker in workers:
            worker.kill()
        self._guard.close()
        for slot in self._slots:
            self._give_back_permit(slot)
        lost = [slot.worker for slot in self._slots if slot.worker is not None and slot.lost is not None]
        for worker in [*workers, *lost, *self._dying]:
            worker.close()
        self._log_keeper.close()

    def _wait_for_event(self, until: float) -> None:
        """Starts what is due, waits (to `until` at most) for something to happen, and deals with all that has."""
        now = time.monotonic()
        if self._dying:
            self._dying = [worker for worker in self._dying if not worker.is_reaped()]
        if now >= self._start_at:
            self._start_what_is_due(now)
        wake_at = min(until, self._check_at, self._start_at)
        timeout_s = -1.0 if wake_at == math.inf else max(0.0, wake_at - now)
        for fd, _ in self._poll.poll(timeout_s):
            slot = self._slot_of_fd.get(fd)
            if slot is not None:
                self._advance(slot)
        # By the time before the answers were read: one that lay there in time counts, however late the caller comes.
        if now >= self._check_at:
            self._check(now)

    def _start_what_is_due(self, now: float) -> None:
        self._start_at = math.inf
        waiting = [slot for slot in self._slots if slot.state is _State.WAITING]
        for slot in sorted(waiting, key=lambda slot: slot.start_at):
            if slot.start_at > now:
                self._start_at = min(self._start_at, slot.start_at)
                return
            slot.permit = self._start_limit.acquire()
            if slot.permit is None:
                self._start_at = min(self._start_at, now + _PERMIT_RETRY_S)
                return
            self._start(slot)

    def _start(self, slot: _Slot) -> None:
        launch = self._launches[slot.env_id]
        index = launch.first_index + slot.env_id
        words = np.random.SeedSequence(self._seed, spawn_key=(index, slot.life)).generate_state(2)
        factory_seed, slot.reset_seed = (int(word) & 0x7FFFFFFF for word in words)
        marker = f"{self._guard.marker}{index}:{slot.life}"
        slot.life += 1
        slot.steps = 0
        self.counters = dataclasses.replace(self.counters, starts=self.counters.starts + 1)
        try:
            slot.worker = EnvWorker(launch, slot.env_id, factory_seed, marker, self._logs[slot.env_id])
        except InstanceFailure as failure:
            self._fail(slot, failure)
            return
        slot.state, slot.fd = _State.BUSY, slot.worker.fileno()
        self._slot_of_fd[slot.fd] = slot
        self._poll.register(slot.fd, select.EPOLLIN)
        self._check_at = min(self._check_at, slot.worker.deadline)

    def _advance(self, slot: _Slot) -> None:
        """Takes what an environment says and asks for what has to follow it."""
        worker = slot.worker
        assert worker is not None
        if slot.state is _State.CLOSING:
            if worker.has_ended():
                self._retire(slot)
            return
        try:
            answer = worker.receive()
            if answer == "start":
                self._check_spec(worker)
        except InstanceFailure as failure:
            if slot.state is _State.BUSY:
                self._fail(slot, failure)
            else:
                slot.lost = failure
                self._forget_fd(slot)
            return
        if isinstance(answer, StepOutcome):
            self._step_is_over(slot)
            slot.outcome, slot.barren_failures = answer, 0
            slot.steps += 1
            if answer.terminated or answer.truncated:
                self._episode_is_over(slot, worker)
            else:
                slot.state, slot.first, slot.obs = _State.READY, False, worker.current
                self._ready.append(slot)
        elif answer == "start":
            worker.reset(slot.reset_seed)
            self._check_at = min(self._check_at, worker.deadline)
        elif answer == "reset":
            self._give_back_permit(slot)
            self._budget.ever_ready = slot.proven = True
            slot.state, slot.first, slot.obs = _State.READY, True, worker.current
            self._ready.append(slot)

    def _episode_is_over(self, slot: _Slot, worker: EnvWorker) -> None:
        """Asks for the next one, of this instance or of a new one."""
        if slot.outcome.truncated:
            slot.final_obs = worker.final  # its memory lasts as long as this, should the worker not
        now = time.monotonic()
        reason = self._recycling.reason(now - worker.started_at, slot.steps, worker.resident_bytes)
        if reason:
            log.info("%s is replaced by a new one: %s", worker.name, reason)
            self.counters = dataclasses.replace(self.counters, recycled=self.counters.recycled + 1)
            slot.state = _State.CLOSING
            worker.ask_to_close(now + _RECYCLE_GRACE_S)
        else:
            worker.reset(None)
        self._check_at = min(self._check_at, worker.deadline)

    def _check(self, now: float) -> None:
        """Deals with all that has taken too long."""
        self._check_at = math.inf
        for slot in self._slots:
            worker = slot.worker
            if worker is None:
                continue
            if slot.lost is not None:
                if slot.stepping:
                    self._fail(slot, slot.lost)
                continue
            if slot.state is _State.CLOSING and now >= worker.deadline:
                self._retire(slot)
                continue
            try:
                worker.check_deadline(now)
            except InstanceFailure as failure:
                self._fail(slot, failure)
                continue
            if slot.stepping and not slot.late:
                if now >= slot.sent_at + _LATE_S:
                    slot.late = True
                    self._awaited -= 1
                else:
                    self._check_at = min(self._check_at, slot.sent_at + _LATE_S)
            self._check_at = min(self._check_at, worker.deadline)

    def _check_spec(self, worker: EnvWorker) -> None:
        if not self._spec_known:
            self.spec, self._spec_known = worker.spec, True
            self._requests = StepRequests(self.spec.action)
        elif worker.spec != self.spec:
            raise worker.failure(
                "start",
                f"its spec is {worker.spec}, that of the environments before it {self.spec}; env.factory must build "
                "environments of one spec",
                permanent=True,
            )

    def _step_is_over(self, slot: _Slot) -> None:
        if not slot.late:
            self._awaited -= 1
        slot.stepping = slot.late = False

    def _retire(self, slot: _Slot) -> None:
        """Buries an instance that was replaced as planned."""
        self._bury(slot)
        slot.state, slot.start_at = _State.WAITING, 0.0
        self._start_at = 0.0

    def _bury(self, slot: _Slot) -> None:
        if slot.worker is not None:
            self._forget_fd(slot)
            slot.worker.kill()
            self._dying.append(slot.worker)
            slot.worker = None
        slot.lost = None
        self._give_back_permit(slot)

    def _forget_fd(self, slot: _Slot) -> None:
        if self._slot_of_fd.pop(slot.fd, None) is not None:
            with contextlib.suppress(OSError):  # a socket that has been closed is forgotten already
                self._poll.unregister(slot.fd)

    def _give_back_permit(self, slot: _Slot) -> None:
        if slot.permit is not None:
            slot.permit.give_back()
            slot.permit = None
            self._start_at = 0.0  # somebody else's turn

    def _fail(self, slot: _Slot, failure: InstanceFailure) -> None:
        """Buries the instance and plans its restart; raises if there is no sense in going on."""
        self._bury(slot)
        if slot.stepping:  # the action that was under way is lost; a step that was done before stays valid
            self._step_is_over(slot)
            slot.failed = True
        now = time.monotonic()
        slot.state = _State.WAITING
        slot.start_at = now + min(_FIRST_BACKOFF_S * 2 ** min(slot.barren_failures, _MAX_DOUBLINGS), _LONGEST_BACKOFF_S)
        self._start_at = min(self._start_at, slot.start_at)
        slot.barren_failures += 1
        failures = {**self.counters.failures, failure.cause: self.counters.failures[failure.cause] + 1}
        self.counters = dataclasses.replace(self.counters, failures=failures)
        self._budget.charge(failure, slot.proven, now)
        log.warning("%s", failure)

    def _hand_over(self, ready: list[_Slot]) -> EnvironmentSteps:
        outcomes = [slot.outcome for slot in ready]
        steps = EnvironmentSteps(
            env_id=np.array([slot.env_id for slot in ready], np.int32),
            obs=[slot.obs for slot in ready],
            first=np.array([slot.first for slot in ready]),
            reward=np.array([outcome.reward for outcome in outcomes], np.float32),
            terminated=np.array([outcome.terminated for outcome in outcomes]),
            truncated=np.array([outcome.truncated for outcome in outcomes]),
            failed=np.array([slot.failed for slot in ready]),
            final_obs=[slot.final_obs for slot in ready],
            info=[dict(outcome.info) for outcome in outcomes],
        )
        for slot in ready:
            slot.state = _State.RECEIVED
            slot.outcome, slot.final_obs, slot.failed = _NO_OUTCOME, None, False
        return steps
