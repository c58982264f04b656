"""ProcessEnvPool: an EnvPool over environments that each have an OS process of their own."""

from __future__ import annotations

import collections
import dataclasses
import enum
import logging
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minestudio_jax.envs.env import EnvironmentFailure, EnvironmentSpec, Observation
from minestudio_jax.rollout.env_pool import EnvironmentSteps, PoolCounters
from minestudio_jax.rollout.env_worker import EnvLaunch, EnvWorker, PermanentEnvironmentFailure, StepOutcome
from minestudio_jax.rollout.process_guard import ProcessGuard

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5  # before the first restart; doubles with every failure without a step in between
_LONGEST_BACKOFF_S = 60.0
_HOUR_S = 3600.0
_FIRST_ATTEMPTS = 3  # starts of each environment before "none ever got ready" is the verdict
_CLOSE_GRACE_S = 2.0  # for all environments together, to close in good order

_NO_OUTCOME = StepOutcome(0.0, False, False, {})


class _State(enum.Enum):
    WAITING = "waiting to be restarted"
    BUSY = "starting, resetting or stepping"
    READY = "ready to be received"
    RECEIVED = "with the caller"


@dataclass
class _Slot:
    """One environment of the pool through all its lives.

    Attributes:
      restart_at: `time.monotonic()` of the next start while WAITING.
      life: of the next worker; counts starts.
      barren_failures: since the last genuine step; sets the back-off.
      failed, outcome, final_obs: what the caller will be told of its last action.
      stepping: the caller's last action is under way; a failure before or after is none of that action's.
      first: what the caller will receive begins an episode.
      reset_seed: of the first reset of this life.
    """

    index: int
    state: _State = _State.WAITING
    worker: EnvWorker | None = None
    restart_at: float = 0.0
    ready_at: float = 0.0
    life: int = 0
    barren_failures: int = 0
    first: bool = True
    failed: bool = False
    stepping: bool = False
    outcome: StepOutcome = _NO_OUTCOME
    final_obs: Observation | None = None
    reset_seed: int = 0


class ProcessEnvPool:
    """Environments of a user's factory, each in its own process; see EnvPool for what `recv` and `send` promise.

    Everything happens inside `recv`, by events: whatever is ready is handed over while the others start, reset, step
    or hang. Ended episodes are reset here, failed environments restarted with back-off.

    Args:
      factory: env.factory, `package.module:function`, called as fn(index=, seed=, **options) in each process.
      num_envs: how many.
      seed: of the pool. Environment i's factory and its first reset in life k get seeds derived from (seed,
        first_env_index + i, k); later resets go on with the environment's own stream.
      options: env.options, JSON values.
      python: env.python; None: this interpreter.
      log_dir: one log file for each environment.
      start_deadline_s, reset_deadline_s, step_deadline_s: seconds; an environment past one is killed and restarted.
      max_failures_per_hour: of all environments together; one more makes `recv` raise.
      first_env_index: index in the run of environment 0 of this pool.
      tasks: of each environment, given to its factory as task=; None: nothing is given.
    Raises:
      EnvironmentFailure: no environment can be started. The constructor returns when the first one has been.
    """

    spec: EnvironmentSpec
    lockstep = False

    def __init__(
        self,
        factory: str,
        num_envs: int,
        seed: int,
        options: dict[str, Any],
        python: str | None,
        log_dir: Path,
        *,
        start_deadline_s: float,
        reset_deadline_s: float,
        step_deadline_s: float,
        max_failures_per_hour: int,
        first_env_index: int = 0,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.counters = PoolCounters()
        launch = EnvLaunch(factory, Path(log_dir), options, python, start_deadline_s, reset_deadline_s, step_deadline_s)
        self._launches = [
            launch if tasks is None else dataclasses.replace(launch, options={**options, "task": tasks[i]})
            for i in range(num_envs)
        ]
        self._seed, self._first_env_index = seed, first_env_index
        self._max_failures_per_hour = max_failures_per_hour
        self._failure_times: collections.deque[float] = collections.deque()
        self._slots = [_Slot(index) for index in range(num_envs)]
        self._spec_known = self._ever_ready = self._closed = False
        self._dying: list[EnvWorker] = []
        self._selector = selectors.DefaultSelector()
        self._guard = ProcessGuard()
        try:
            while not self._spec_known:
                self._wait_for_event(None)
        except BaseException:
            self.close()
            raise

    def recv(self, timeout_s: float, max_ready: int | None = None, max_wait_s: float = 0.0) -> EnvironmentSteps | None:
        """As EnvPool.recv.

        Raises:
          EnvironmentFailure: more than max_failures_per_hour failures within an hour, three times as many starts as
            environments without one getting ready, or a failure that no restart can heal.
        """
        give_up = time.monotonic() + timeout_s
        self._wait_for_event(time.monotonic())  # takes what has come already, all of it, without waiting
        while not (ready := [slot for slot in self._slots if slot.state is _State.READY]):
            if time.monotonic() >= give_up:
                return None
            self._wait_for_event(give_up)
        most, patience = min(max_ready or self.num_envs, self.num_envs), time.monotonic() + max_wait_s
        while len(ready) < most and any(slot.stepping for slot in self._slots) and time.monotonic() < patience:
            self._wait_for_event(patience)
            ready = [slot for slot in self._slots if slot.state is _State.READY]
        return self._hand_over(sorted(ready, key=lambda slot: slot.ready_at)[:most])

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray) -> None:
        """As EnvPool.send.

        Raises:
          ValueError: an environment is not with the caller, or the components are not those of the spec.
        """
        if set(action) != set(self.spec.action):
            raise ValueError(f"the action has components {sorted(action)}, the spec {sorted(self.spec.action)}")
        for k, i in enumerate(env_id):
            slot = self._slots[i]
            if slot.state is not _State.RECEIVED:
                raise ValueError(f"environment {i} is {slot.state.value}: receive it before sending it an action")
            assert slot.worker is not None
            slot.stepping = True
            slot.worker.step({name: component[k] for name, component in action.items()})
            self._watch(slot, slot.worker)

    def close(self) -> None:
        """As EnvPool.close; gives the environments two seconds to close in good order."""
        if self._closed:
            return
        self._closed = True
        workers = {slot.worker for slot in self._slots if slot.worker is not None}
        self._selector.close()
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
        for worker in [*workers, *self._dying]:
            worker.close()

    def _wait_for_event(self, until: float | None) -> None:
        """Starts what is due, waits (to `until` at most) for something to happen, and deals with all that has."""
        self._dying = [worker for worker in self._dying if not worker.is_reaped()]
        for slot in self._slots:
            if slot.state is _State.WAITING and time.monotonic() >= slot.restart_at:
                self._start(slot)
        times = [slot.restart_at for slot in self._slots if slot.state is _State.WAITING]
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        times += [worker.deadline for worker in workers if worker.deadline is not None]
        times += [] if until is None else [until]
        wait_s = max(0.0, min(times) - time.monotonic()) if times else None
        for key, _ in self._selector.select(wait_s):
            self._advance(self._slots[key.data])
        # Only now, after reading: an answer that lay there in time counts, however late the caller comes.
        now = time.monotonic()
        for slot in self._slots:
            if slot.worker is not None:
                try:
                    slot.worker.check_deadline(now)
                except EnvironmentFailure as failure:
                    self._fail(slot, failure)

    def _start(self, slot: _Slot) -> None:
        index = self._first_env_index + slot.index
        words = np.random.SeedSequence(self._seed, spawn_key=(index, slot.life)).generate_state(2)
        factory_seed, slot.reset_seed = (int(word) & 0x7FFFFFFF for word in words)
        marker = f"{self._guard.marker}{index}:{slot.life}"
        slot.life += 1
        self.counters = dataclasses.replace(self.counters, starts=self.counters.starts + 1)
        try:
            slot.worker = EnvWorker(self._launches[slot.index], index, factory_seed, marker)
        except EnvironmentFailure as failure:
            self._fail(slot, failure)
            return
        self._watch(slot, slot.worker)

    def _watch(self, slot: _Slot, worker: EnvWorker) -> None:
        """Only while it is busy: the death of an idle environment is found out and told as one in its next action."""
        slot.state = _State.BUSY
        self._selector.register(worker, selectors.EVENT_READ, slot.index)

    def _ready(self, slot: _Slot, worker: EnvWorker, first: bool) -> None:
        slot.state, slot.first, slot.ready_at = _State.READY, first, time.monotonic()
        self._selector.unregister(worker)

    def _advance(self, slot: _Slot) -> None:
        """Takes an environment's answer and asks for what has to follow it."""
        assert slot.worker is not None
        try:
            answer = slot.worker.receive()
            if answer == "start":
                self._check_spec(slot.worker)
        except EnvironmentFailure as failure:
            self._fail(slot, failure)
            return
        if answer == "start":
            slot.worker.reset(slot.reset_seed)
        elif answer == "reset":
            self._ready(slot, slot.worker, first=True)
        elif isinstance(answer, StepOutcome):
            slot.outcome, slot.stepping, slot.barren_failures = answer, False, 0
            if not (answer.terminated or answer.truncated):
                self._ready(slot, slot.worker, first=False)
                return
            if answer.truncated:  # its memory stays as it is and where it is while it is held, should the reset fail
                slot.final_obs = slot.worker.final
            slot.worker.reset(None)

    def _check_spec(self, worker: EnvWorker) -> None:
        if not self._spec_known:
            self.spec, self._spec_known = worker.spec, True
        elif worker.spec != self.spec:
            raise worker.failure(
                f"its spec is {worker.spec}, that of the environments before it {self.spec}; env.factory must build "
                "environments of one spec",
                permanent=True,
            )

    def _fail(self, slot: _Slot, failure: EnvironmentFailure) -> None:
        """Buries the instance and plans its restart; raises if there is no sense in going on."""
        if slot.worker is not None:
            self._selector.unregister(slot.worker)
            self._dying.append(slot.worker)
            slot.worker = None
        if slot.stepping:  # the action that was under way is lost; a step that was done before stays valid
            slot.failed, slot.stepping = True, False
        now = time.monotonic()
        slot.state = _State.WAITING
        slot.restart_at = now + min(_FIRST_BACKOFF_S * 2**slot.barren_failures, _LONGEST_BACKOFF_S)
        slot.barren_failures += 1
        failures = {**self.counters.failures, "exception": self.counters.failures["exception"] + 1}
        self.counters = dataclasses.replace(self.counters, failures=failures)
        if isinstance(failure, PermanentEnvironmentFailure):
            raise failure
        self._failure_times.append(now)
        while self._failure_times[0] < now - _HOUR_S:
            self._failure_times.popleft()
        if len(self._failure_times) > self._max_failures_per_hour:
            raise EnvironmentFailure(
                f"{len(self._failure_times)} environment failures within an hour are more than "
                f"env.max_failures_per_hour={self._max_failures_per_hour}; find the cause in the log, or raise that "
                f"setting if it is expected. The last one: {failure}"
            ) from None
        if not self._ever_ready and self.counters.total_failures >= _FIRST_ATTEMPTS * self.num_envs:
            raise EnvironmentFailure(
                f"none of {self.num_envs} environments got ready in {self.counters.total_failures} attempts; check "
                f"env.factory={self._launches[0].factory!r} and env.options. The last failure: {failure}"
            ) from None
        log.warning("%s", failure)

    def _hand_over(self, ready: list[_Slot]) -> EnvironmentSteps:
        self._ever_ready = True
        outcomes = [slot.outcome for slot in ready]
        steps = EnvironmentSteps(
            env_id=np.array([slot.index for slot in ready], np.int32),
            obs=[slot.worker.current for slot in ready if slot.worker is not None],
            first=np.array([slot.first for slot in ready]),
            reward=np.array([outcome.reward for outcome in outcomes], np.float32),
            terminated=np.array([outcome.terminated for outcome in outcomes]),
            truncated=np.array([outcome.truncated for outcome in outcomes]),
            failed=np.array([slot.failed for slot in ready]),
            final_obs=[slot.final_obs for slot in ready],
            info=[outcome.info for outcome in outcomes],
        )
        for slot in ready:
            slot.state = _State.RECEIVED
            slot.outcome, slot.final_obs, slot.failed = _NO_OUTCOME, None, False
        return steps
