"""The Ray actor around a RolloutWorker: its process, its threads, its way to the replay buffer."""

from __future__ import annotations

import collections
import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.cpu_pinning import CpuPinning
from minestudio_jax.rollout.env_pool import EnvPool, ToldToStop
from minestudio_jax.rollout.environments import make_pool
from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.rollout.fragment_sender import FragmentSender, Outbox, SenderCounters
from minestudio_jax.rollout.policy_loading import PackedVersion, PolicyLoader, let_acting_go_on
from minestudio_jax.rollout.rollout_worker import RolloutWorker, WorkerReport
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

_ATTEND_S = 0.1  # how often a worker that cannot deliver sees to its environments
_MOST_WARNINGS = 100  # that are kept for a report; of more the oldest go
_ENV_NICENESS = 15  # environments give way to who acts for them, and to the learner
MAX_CALLS = 16  # none may wait for another: `stop` and `drain` take their time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorReport:
    """What the manager gets to know of a worker.

    Attributes:
      state: "starting" its environments, "acting" or "draining".
      spec: of its environments; None while it starts.
      worker: since the last report; None while it starts.
      rests: see RolloutWorker.
      still_s: for how many seconds the thread that acts has not gone on; 0 unless it acts.
      sender: since the start of the worker.
      warnings: since the last report, sentences for the run's log.
    """

    state: str
    spec: EnvironmentSpec | None
    worker: WorkerReport | None
    rests: bool
    still_s: float
    sender: SenderCounters
    warnings: list[str] = field(default_factory=list)


class _Warnings(logging.Handler):
    """Keeps this process's warnings, which Ray would hide in a file of its own, for the run's log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._sentences: collections.deque[str] = collections.deque(maxlen=_MOST_WARNINGS)
        logging.getLogger("minestudio_jax").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._sentences.append(record.getMessage())

    def take(self) -> list[str]:
        """Those since the last call."""
        return [self._sentences.popleft() for _ in range(len(self._sentences))]

    def close(self) -> None:
        logging.getLogger("minestudio_jax").removeHandler(self)
        super().close()


class RolloutActor:
    """Owns one worker's environments and acting policy in a process of its own. No call waits for a start.

    Args:
      config: the run's settings.
      worker_id: which worker this is.
      worker_life: how many times it had been started before.
      session_id: life of the trainer.
      log_dir: where the environments' logs go.
      replay_buffer: handle of the ReplayBufferActor.
    """

    def __init__(
        self,
        config: Config,
        worker_id: int,
        worker_life: int,
        session_id: str,
        log_dir: Path,
        replay_buffer: Any,
    ) -> None:
        self._config, self._log_dir, self._warnings = config, log_dir, _Warnings()
        self._identity = (worker_id, worker_life, session_id)
        self._sender = FragmentSender(replay_buffer, config.rollout.to_send_queue_size, self._must_end)
        self._outbox = Outbox(self._sender, self._fail)
        self._stop = threading.Event()
        self._drain_until = 0.0  # time.monotonic(); 0: nothing is waited for at the end
        self._error: Exception | None = None
        self._started = threading.Event()  # or failed to
        self._spec: EnvironmentSpec | None = None
        self._worker: RolloutWorker | None = None
        self._loader: PolicyLoader | None = None
        self._offered_early: tuple[int, Path | PackedVersion] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    def load_policy(self, version: int, where: Path | PackedVersion) -> None:
        """Takes note of a published version, to be read beside the acting and used from the batch after."""
        with self._lock:
            if self._loader is None:
                self._offered_early = (version, where)
            else:
                self._loader.offer(version, where)

    def permit(self, version: int, num_fragments: int) -> None:
        """See RolloutWorker.permit; once a report has said that it acts."""
        assert self._worker is not None
        self._worker.permit(version, num_fragments)

    def set_replay_buffer(self, replay_buffer: Any, life: int) -> None:
        """The buffer has been replaced, `life` times: fragments that the last one did not confirm go to this one."""
        self._sender.set_buffer(replay_buffer, life)

    def report(self) -> ActorReport:
        """What happened since the last call.

        Raises:
          Exception: what made the worker fail.
        """
        self._raise_error()
        return self._report()

    def drain(self, deadline_s: float) -> ActorReport:
        """Ends acting, delivers every step that was played, within `deadline_s`, and closes the environments.

        Returns:
          The last report.
        """
        self._drain_until = time.monotonic() + deadline_s
        return self.stop()

    def stop(self) -> ActorReport:
        """Ends acting and closes the environments; fragments under way are delivered or abandoned.

        Returns:
          The last report.
        """
        self._stop.set()
        self._thread.join()
        self._warnings.close()
        return self._report()

    def _report(self) -> ActorReport:
        ready = self._worker if self._started.is_set() else None
        state = "draining" if self._drain_until else "acting" if ready else "starting"
        worker, rests = (ready.report(), ready.rests) if ready else (None, False)
        still_s = time.monotonic() - ready.moved_at if ready and state == "acting" else 0.0
        return ActorReport(state, self._spec, worker, rests, still_s, self._sender.counters, self._warnings.take())

    def _run(self) -> None:
        """The environments' whole life: everything that they are asked comes from this thread."""
        pool: EnvPool | None = None
        worker_id, worker_life, session_id = self._identity
        cpus: CpuPinning | None = None
        try:
            # Before JAX begins: how it compiles, and on which CPUs; those are not for the environments.
            configure_cpu_compiler()
            cpus = CpuPinning(self._config.rollout.num_cpus_per_worker)
            pool = make_pool(
                self._config,
                worker_id,
                worker_life,
                self._log_dir,
                session_id,
                cpus.before,
                _ENV_NICENESS,
                self._stop,
            )
            policy = make_policy(self._config, pool.spec)
            self._worker = RolloutWorker(
                self._config, worker_id, worker_life, session_id, pool, policy, partial(self._deliver, pool)
            )
            abstract_params = policy.abstract_params()
            with self._lock:
                self._loader = PolicyLoader(abstract_params, self._worker.set_policy, self._fail)
                if self._offered_early is not None:
                    self._loader.offer(*self._offered_early)
            let_acting_go_on()
            self._spec = pool.spec
            self._started.set()
            self._worker.run(self._stop)
            if self._drain_until:
                self._worker.drain()
            self._outbox.close()
        except ToldToStop:
            log.info("rollout worker %d was told to stop while its environments started", worker_id)
        except Exception as error:  # told by the next call
            self._fail(error)
        finally:
            self._started.set()
            if self._loader is not None:
                self._loader.close()
            if pool is not None:
                pool.close()
            if cpus is not None:
                cpus.close()

    def _deliver(self, pool: EnvPool, fragment: SampleFragment) -> None:
        """Hands a fragment to the outbox. While there is no room in it, environments start and hang nevertheless."""
        while not self._outbox.offer(fragment, _ATTEND_S):
            if self._must_end():
                self._sender.abandon()
                return
            assert self._worker is not None
            self._worker.moved_at = time.monotonic()
            pool.attend()

    def _must_end(self) -> bool:
        return self._stop.is_set() and time.monotonic() >= self._drain_until

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._stop.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
