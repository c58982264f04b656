"""RolloutWorker: receives ready environments, acts, builds fragments. No Ray in here."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from minestudio_jax.config import Config
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.rollout.env_pool import EnvironmentSteps, EnvPool
from minestudio_jax.rollout.environments import worker_tasks
from minestudio_jax.rollout.episode_statistics import Episode, said_success
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment
from minestudio_jax.rollout.fragment_builder import Decision, FragmentBuilder
from minestudio_jax.rollout.inference import Inference
from minestudio_jax.utils.seeding import derived_seed
from minestudio_jax.utils.timing import Stopwatch

_RECV_TIMEOUT_S = 0.5  # how often a worker whose environments are all busy looks whether it should stop


@dataclass(frozen=True)
class WorkerReport:
    """What happened in a worker since its last report.

    Attributes:
      env_failures: environment failures.
      episodes: finished ones.
      seconds: by phase: env (waiting for environments), inference, fragments, send (waiting for the buffer),
        policy (waiting for the first version).
      version: policy version in use; -1 before the first.
    """

    env_failures: int = 0
    episodes: list[Episode] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = -1


class RolloutWorker:
    """Acts in one pool of environments with the newest policy it was given.

    Args:
      config: rollout and environment settings.
      worker_id: which worker of the run this is.
      worker_life: how many times it had been restarted.
      session_id: life of the trainer.
      pool: its environments; closed by the caller.
      policy: the functions.
      emit: called with every finished fragment; may block.
    """

    def __init__(
        self,
        config: Config,
        worker_id: int,
        worker_life: int,
        session_id: str,
        pool: EnvPool,
        policy: Policy,
        emit: Callable[[SampleFragment], None],
    ) -> None:
        self._pool = pool
        self._emit = emit
        self._tasks = worker_tasks(config, worker_id)
        self._worker_id, self._worker_life, self._session_id = worker_id, worker_life, session_id
        seed = derived_seed(config.run.seed, "sampling", worker_id, worker_life)
        self._inference = Inference(policy, pool.num_envs, config.rollout.batch_size, seed)
        self._builders = [
            FragmentBuilder(pool.spec, config.rollout.fragment_length, self._describe_environment(env_id))
            for env_id in range(pool.num_envs)
        ]
        # One tuple, replaced as a whole: version and parameters can never come apart.
        self._policy: tuple[int, Params] | None = None
        self._policy_arrived = threading.Event()
        self._acting_version = -1
        self._discount = config.trainer.discount
        self._episode_return = np.zeros(pool.num_envs)
        self._discounted_return = np.zeros(pool.num_envs)
        self._episode_length = np.zeros(pool.num_envs, int)
        self.watch = Stopwatch()
        self._lock = threading.Lock()
        self._since = WorkerReport()
        self._reported_failures = 0

    def set_policy(self, version: int, params: Params) -> None:
        """Gives the worker a policy, from any thread; it acts with it from the next batch on."""
        # Ready before it is used: who acts does not wait for it.
        self._policy = (version, jax.block_until_ready(self._inference.prepared(params)))
        self._policy_arrived.set()

    def run(self, stop: threading.Event) -> None:
        """Acts until `stop` is set; idle until the first policy arrives.

        Raises:
          EnvironmentFailure: the environments break too often.
        """
        with self.watch.phase("policy"):
            while not self._policy_arrived.wait(_RECV_TIMEOUT_S):
                if stop.is_set():
                    return
        while not stop.is_set():
            self.run_once()

    def run_once(self) -> None:
        """One round: receive, record what came of the last actions, act, send."""
        with self.watch.phase("env"):
            steps = self._pool.recv(_RECV_TIMEOUT_S)
        if steps is None:
            return
        assert self._policy is not None, "set_policy() comes first"
        version, params = self._policy
        self._record_outcomes(steps, params)
        opening = np.array([self._builders[i].needs_policy_state for i in steps.env_id])
        memory = self._inference.memory(steps.env_id[opening], steps.first[opening])
        with self.watch.phase("inference"):
            action, logp, value = self._inference.act(params, steps.obs, steps.first, steps.env_id)
        self._acting_version = version
        self._pool.send(action, steps.env_id)
        # The environments work while the fragments are written.
        finished = []
        with self.watch.phase("fragments"):
            memory_row = np.cumsum(opening) - 1
            for k, env_id in enumerate(steps.env_id):
                state = None
                if opening[k]:
                    state = jax.tree.map(lambda leaf, row=memory_row[k]: leaf[row].copy(), memory)
                decision = Decision(
                    {name: a[k] for name, a in action.items()}, float(logp[k]), float(value[k]), version
                )
                obs = {name: x[k] for name, x in steps.obs.items()}
                fragment = self._builders[env_id].observe(obs, bool(steps.first[k]), decision, state)
                if fragment is not None:
                    finished.append(fragment)
        self._send(finished)

    def report(self) -> WorkerReport:
        """What happened since the last call."""
        failures = self._pool.counters.failures
        with self._lock:
            report, self._since = self._since, WorkerReport()
            new_failures, self._reported_failures = failures - self._reported_failures, failures
        return dataclasses.replace(
            report, env_failures=new_failures, seconds=self.watch.drain(), version=self._acting_version
        )

    def _record_outcomes(self, steps: EnvironmentSteps, params: Params) -> None:
        final_value = np.zeros(len(steps.env_id), np.float32)
        cut = np.flatnonzero(steps.truncated & ~steps.terminated)
        if len(cut):
            assert steps.final_obs is not None, "a truncated step comes with the episode's last observation"
            final_obs = {name: x[cut] for name, x in steps.final_obs.items()}
            with self.watch.phase("inference"):
                final_value[cut] = self._inference.value(params, final_obs, steps.env_id[cut])
        episodes, fragments = [], []
        for k, env_id in enumerate(steps.env_id):
            builder = self._builders[env_id]
            if steps.failed[k]:
                cut_fragment = builder.fail()
                if cut_fragment is not None:
                    fragments.append(cut_fragment)
                self._begin_episode(env_id)
                continue
            if not builder.awaits_outcome:  # the first receipt of the environment
                continue
            terminated, truncated = bool(steps.terminated[k]), bool(steps.truncated[k])
            builder.outcome(float(steps.reward[k]), terminated, truncated, float(final_value[k]))
            self._episode_return[env_id] += float(steps.reward[k])
            self._discounted_return[env_id] += self._discount ** self._episode_length[env_id] * float(steps.reward[k])
            self._episode_length[env_id] += 1
            if terminated or truncated:
                episodes.append(
                    Episode(
                        float(self._episode_return[env_id]),
                        float(self._discounted_return[env_id]),
                        int(self._episode_length[env_id]),
                        said_success(steps.info[k]),
                        self._tasks[env_id],
                        self._acting_version,
                    )
                )
                self._begin_episode(env_id)
        with self._lock:
            self._since = dataclasses.replace(self._since, episodes=self._since.episodes + episodes)
        self._send(fragments)

    def _begin_episode(self, env_id: int) -> None:
        self._episode_return[env_id] = self._discounted_return[env_id] = self._episode_length[env_id] = 0

    def _send(self, fragments: list[SampleFragment]) -> None:
        if not fragments:
            return
        with self.watch.phase("send"):
            for fragment in fragments:
                self._emit(fragment)

    def _describe_environment(self, env_id: int) -> Callable[[int, int, int, int, int], FragmentMetadata]:
        def describe(
            fragment_index: int, start_step: int, valid_steps: int, version_first: int, version_last: int
        ) -> FragmentMetadata:
            return FragmentMetadata(
                worker_id=self._worker_id,
                worker_life=self._worker_life,
                env_id=env_id,
                fragment_index=fragment_index,
                start_step=start_step,
                valid_steps=valid_steps,
                session_id=self._session_id,
                version_first=version_first,
                version_last=version_last,
                task=self._tasks[env_id],
            )

        return describe
