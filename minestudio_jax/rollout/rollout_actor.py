"""The Ray actor around a RolloutWorker: its process, its threads, its way to the replay buffer."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.env_pool import EnvPool
from minestudio_jax.rollout.environments import make_pool
from minestudio_jax.rollout.fragment_sender import FragmentSender, SenderCounters
from minestudio_jax.rollout.rollout_worker import RolloutWorker, WorkerReport
from minestudio_jax.utils import policy_store

MAX_CALLS = 16  # none may wait for another: `spec`, `stop` and `drain` take their time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorReport:
    """What the manager gets to know of a worker.

    Attributes:
      state: "starting" its environments, "acting" or "draining".
      worker: since the last report; None while it starts.
      sender: since the start of the worker.
      warnings: since the last report, sentences for the run's log.
    """

    state: str
    worker: WorkerReport | None
    sender: SenderCounters
    warnings: list[str] = field(default_factory=list)


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
        self._config, self._log_dir = config, log_dir
        self._identity = (worker_id, worker_life, session_id)
        self._sender = FragmentSender(replay_buffer, config.rollout.to_send_queue_size, self._must_end, self._warn_of)
        self._warnings: list[str] = []
        self._stop = threading.Event()
        self._drain_until = 0.0  # time.monotonic(); 0: nothing is waited for at the end
        self._error: Exception | None = None
        self._started = threading.Event()  # or failed to
        self._spec: EnvironmentSpec | None = None
        self._worker: RolloutWorker | None = None
        self._wanted: tuple[int, Any] | None = None  # the newest version that is to be loaded
        self._wanted_changed = threading.Condition()
        self._loaded_version = -1
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("rollout", self._run), ("policy-loader", self._load))
        ]
        for thread in self._threads:
            thread.start()

    def spec(self) -> EnvironmentSpec:
        """Of its environments, once they have started.

        Raises:
          Exception: they could not be started.
        """
        self._started.wait()
        self._raise_error()
        assert self._spec is not None
        return self._spec

    def load_policy(self, version: int, source: list[Any]) -> None:
        """Has a published version read, to act with it from the next batch on; does not wait.

        Only the newest is read: what was asked for meanwhile and is older by then never is.

        Args:
          version: its number.
          source: where it is, in a list so that Ray passes it on as it is.
        """
        with self._wanted_changed:
            if version > max(self._loaded_version, self._wanted[0] if self._wanted else -1):
                self._wanted = (version, source[0])
                self._wanted_changed.notify_all()

    def set_replay_buffer(self, replay_buffer: Any, life: int) -> None:
        """The buffer has been replaced, `life` times: fragments that the last one did not confirm go to this one."""
        self._sender.set_buffer(replay_buffer, life)

    def report(self) -> ActorReport:
        """What happened since the last call.

        Raises:
          Exception: what made the worker fail.
        """
        self._raise_error()
        warnings, self._warnings = self._warnings, []
        started = self._started.is_set() and self._worker is not None
        state = "draining" if self._drain_until else "acting" if started else "starting"
        worker = self._worker.report() if started and self._worker is not None else None
        return ActorReport(state, worker, self._sender.counters, warnings)

    def drain(self, deadline_s: float) -> SenderCounters:
        """Ends acting, delivers every step that was played, within `deadline_s`, and closes the environments."""
        self._drain_until = time.monotonic() + deadline_s
        return self.stop()

    def stop(self) -> SenderCounters:
        """Ends acting and closes the environments; fragments under way are delivered or abandoned."""
        self._stop.set()
        with self._wanted_changed:
            self._wanted_changed.notify_all()
        for thread in self._threads:
            thread.join()
        return self._sender.counters

    def _run(self) -> None:
        """The environments' whole life: everything that they are asked comes from this thread."""
        pool: EnvPool | None = None
        try:
            worker_id, worker_life, session_id = self._identity
            pool = make_pool(self._config, worker_id, worker_life, self._log_dir)
            policy = make_policy(self._config, pool.spec)
            self._abstract_params = jax.eval_shape(policy.init, jax.random.key(0))
            self._worker = RolloutWorker(
                self._config, worker_id, worker_life, session_id, pool, policy, self._sender.send
            )
            self._spec = pool.spec
            self._started.set()
            self._worker.run(self._stop)
            if self._drain_until:
                self._worker.drain()
            self._sender.flush()
        except Exception as error:  # told by the next call
            self._fail(error)
        finally:
            self._started.set()
            if pool is not None:
                pool.close()

    def _load(self) -> None:
        """Reads versions, the newest first and no other."""
        self._started.wait()
        while True:
            with self._wanted_changed:
                self._wanted_changed.wait_for(lambda: self._wanted is not None or self._stop.is_set())
                if self._stop.is_set() or self._wanted is None or self._worker is None:
                    return
                (version, source), self._wanted = self._wanted, None
            try:
                params = policy_store.load_version(source, self._abstract_params)
            except FileNotFoundError:
                # Only a newer version's arrival removes one, and that one's call comes behind this.
                log.warning("policy version %d was gone before it could be read", version)
                continue
            except Exception as error:  # nobody waits for this call's answer
                self._fail(error)
                return
            self._worker.set_policy(version, params)
            self._loaded_version = version

    def _must_end(self) -> bool:
        return self._stop.is_set() and time.monotonic() >= self._drain_until

    def _warn_of(self, sentence: str) -> None:
        self._warnings.append(sentence)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._stop.set()
        with self._wanted_changed:
            self._wanted_changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
