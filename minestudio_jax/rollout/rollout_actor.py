"""The Ray actor around a RolloutWorker: its process, its threads, its way to the replay buffer."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import jax
import ray

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.cpu_pinning import CpuPinning
from minestudio_jax.rollout.env_pool import EnvPool
from minestudio_jax.rollout.environments import make_pool
from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.rollout.policy_loading import SWITCH_INTERVAL_S, PackedVersion, PolicyLoader
from minestudio_jax.rollout.rollout_worker import RolloutWorker, WorkerReport

_WAIT_S = 0.5  # how often a blocked sender looks whether it should stop


class RolloutActor:
    """Owns one worker's environments and acting policy in a process of its own.

    Args:
      config: the run's settings.
      worker_id: which worker this is.
      worker_life: how many times it had been restarted.
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
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._replay_buffer = replay_buffer
        self._queue_size = config.rollout.to_send_queue_size
        self._under_way: list[Any] = []
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._pool: EnvPool | None = None
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._loader: PolicyLoader | None = None
        try:
            # Before JAX makes its threads, and not for the environments.
            self._cpus = CpuPinning(config.rollout.num_cpus_per_worker, session_id)
            self._pool = make_pool(config, worker_id, worker_life, log_dir, session_id, self._cpus.before)
            policy = make_policy(config, self._pool.spec)
            self._worker = RolloutWorker(config, worker_id, worker_life, session_id, self._pool, policy, self._send)
            abstract_params = jax.eval_shape(policy.init, jax.random.key(0))
            self._loader = PolicyLoader(abstract_params, self._worker.set_policy, self._fail)
            self._thread.start()
        except Exception as error:  # told by the next call: what a constructor raises reaches nobody as it is
            self._fail(error)

    def spec(self) -> EnvironmentSpec:
        """Of its environments.

        Raises:
          Exception: they could not be started.
        """
        self._raise_error()
        assert self._pool is not None
        return self._pool.spec

    def load_policy(self, version: int, where: Path | PackedVersion) -> None:
        """Takes note of a published version, to be read beside the acting and used from the batch after."""
        if self._loader is not None:
            self._loader.offer(version, where)

    def report(self) -> WorkerReport:
        """What happened since the last call.

        Raises:
          Exception: what made the worker fail.
        """
        self._raise_error()
        return self._worker.report()

    def stop(self) -> None:
        """Ends acting and closes the environments; fragments under way are delivered or abandoned."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._loader is not None:
            self._loader.close()
        if self._pool is not None:
            self._pool.close()

    def _run(self) -> None:
        try:
            self._worker.run(self._stop)
        except Exception as error:  # told by the next report
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._stop.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, fragment: SampleFragment) -> None:
        """Hands a fragment to the buffer; pauses while too many are under way."""
        while len(self._under_way) >= self._queue_size and not self._stop.is_set():
            done, self._under_way = ray.wait(self._under_way, timeout=_WAIT_S)
            ray.get(done)  # raises if the buffer failed
        fragment = fragment.sized()
        reference = ray.put(fragment)
        self._under_way.append(self._replay_buffer.add.remote([reference], fragment.metadata))
