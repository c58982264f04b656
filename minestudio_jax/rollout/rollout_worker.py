"""RolloutWorker: receives ready environments, acts, builds fragments. No Ray in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from minestudio_jax.config import Config
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.rollout.env_pool import EnvironmentSteps, EnvPool, PoolCounters
from minestudio_jax.rollout.environments import worker_tasks
from minestudio_jax.rollout.episode_statistics import Episode, said_reward_terms, said_success
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment
from minestudio_jax.rollout.fragment_builder import Decision, Describe, FragmentBuilder
from minestudio_jax.rollout.inference import Chosen, Inference
from minestudio_jax.utils.seeding import derived_seed
from minestudio_jax.utils.timing import Stopwatch

_ATTEND_S = 0.1  # how often a worker without a policy sees to its environments
_RECV_TIMEOUT_S = 0.5  # how often a worker whose environments are all busy looks whether it should stop


@dataclass(frozen=True)
class WorkerReport:
    """What happened in a worker since its last report.

    Attributes:
      env_starts: environment instances started.
      env_recycled: environment instances replaced as planned.
      env_failures: cause -> environment failures.
      episodes: finished ones.
      seconds: by phase: env (waiting for environments), inference, fragments, send (waiting for the buffer),
        policy (waiting for a version, or for the permission to act).
      version: policy version in use; -1 before the first.
    """

    env_starts: int = 0
    env_recycled: int = 0
    env_failures: Mapping[str, int] = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = -1


@dataclass(frozen=True)
class _UnderWay:
    """Environments whose actions are being computed.

    Attributes:
      env_id: int32 [K].
      opens: bool [K], the observation opens a fragment.
      version: of the policy that acts.
      wait: gives what it chose.
    """

    env_id: np.ndarray
    opens: np.ndarray
    version: int
    wait: Callable[[], Chosen]


class RolloutWorker:
    """Acts in one pool of environments with the newest policy it was given.

    While the policy computes the actions of some environments, others step, and what came of those that are done is
    written into their fragments.

    Args:
      config: rollout and environment settings.
      worker_id: which worker of the run this is.
      worker_life: how many times it had been restarted.
      session_id: life of the trainer.
      pool: its environments; closed by the caller.
      policy: the functions.
      emit: called with every finished fragment; may block.
    Attributes:
      moved_at: `time.monotonic()` when the thread in `run` was last seen to go on. Who blocks in `emit` sets it.
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
        self._max_wait_s = config.rollout.max_wait_ms / 1000
        self._discount = config.trainer.discount
        seed = derived_seed(config.run.seed, "sampling", worker_id, worker_life)
        batch_size = config.rollout.inference_batch_size
        self._inference = Inference(policy, pool.spec, pool.num_envs, batch_size, seed, always_full=pool.lockstep)
        self._builders = [
            FragmentBuilder(pool.spec, config.rollout.fragment_length, self._describe_environment(env_id))
            for env_id in range(pool.num_envs)
        ]
        self._under_way: _UnderWay | None = None
        # One tuple, replaced as a whole: version and parameters can never come apart.
        self._policy: tuple[int, Params] | None = None
        self._changed = threading.Condition()
        # With rollout.synchronous: the version to act with at least, and how many fragments may still be finished.
        self._permitted: tuple[int, int] | None = (0, 0) if config.rollout.synchronous else None
        self._acting_version = -1
        self._episodes = [_EpisodeSoFar() for _ in range(pool.num_envs)]
        self.watch = Stopwatch()
        self.moved_at = time.monotonic()
        self._lock = threading.Lock()
        self._finished_episodes: list[Episode] = []
        self._reported = PoolCounters()

    def set_policy(self, version: int, params: Params) -> None:
        """Gives the worker a policy, from any thread; it acts with it from the next batch on."""
        prepared = self._inference.prepared(params)
        if self._policy is None:
            self._inference.compile(prepared)
        with self._changed:
            self._policy = (version, prepared)
            self._changed.notify_all()

    def permit(self, version: int, num_fragments: int) -> None:
        """With rollout.synchronous: allows that many fragments more, acting with that version or a newer one."""
        with self._changed:
            left = 0 if self._permitted is None else self._permitted[1]
            self._permitted = (version, left + num_fragments)
            self._changed.notify_all()

    @property
    def may_act(self) -> bool:
        """There is a policy and, with rollout.synchronous, the permission."""
        if self._policy is None:
            return False
        return self._permitted is None or (self._permitted[1] > 0 and self._policy[0] >= self._permitted[0])

    @property
    def rests(self) -> bool:
        """With rollout.synchronous: it has finished what it was permitted to."""
        return self._permitted is not None and self._permitted[1] <= 0

    def run(self, stop: threading.Event) -> None:
        """Acts until `stop` is set; idle while it may not.

        Raises:
          EnvironmentFailure: the environments break too often.
        """
        while not stop.is_set():
            self.moved_at = time.monotonic()
            if self.may_act:
                self.run_once()
                continue
            self._pool.attend()
            with self.watch.phase("policy"), self._changed:
                self._changed.wait_for(lambda: self.may_act, _ATTEND_S)

    def run_once(self) -> None:
        """One round: take what is ready and begin to act on it; then send what was chosen in the round before.

        The policy therefore has its next batch at hand when it is done with one.
        """
        assert self._policy is not None, "set_policy() comes first"
        version, params = self._policy
        idle = self._under_way is None
        with self.watch.phase("env"):
            steps = self._pool.recv(
                _RECV_TIMEOUT_S if idle else 0.0,
                self._inference.efficient_sizes,
                self._max_wait_s if idle else 0.0,
            )
        begun = None if steps is None else self._begin(steps, version, params)
        if self._under_way is not None:
            self._answer(self._under_way, send=True)
        self._under_way = begun

    def drain(self) -> None:
        """Emits what there is of every fragment, for a worker that does not act any more."""
        if self._under_way is not None:
            self._answer(self._under_way, send=False)
            self._under_way = None
        self._send([fragment for builder in self._builders if (fragment := builder.cut()) is not None])

    def report(self) -> WorkerReport:
        """What happened since the last call."""
        now = self._pool.counters
        with self._lock:
            episodes, self._finished_episodes = self._finished_episodes, []
            before, self._reported = self._reported, now
        failures = {cause: count - before.failures.get(cause, 0) for cause, count in now.failures.items()}
        return WorkerReport(
            env_starts=now.starts - before.starts,
            env_recycled=now.recycled - before.recycled,
            env_failures={cause: count for cause, count in failures.items() if count},
            episodes=episodes,
            seconds=self.watch.drain(),
            version=self._acting_version,
        )

    def _begin(self, steps: EnvironmentSteps, version: int, params: Params) -> _UnderWay:
        """Records what came of the last actions and begins to choose the next."""
        self._record_outcomes(steps, params)
        with self.watch.phase("fragments"):
            builders = [self._builders[env_id] for env_id in steps.env_id.tolist()]
            for builder, obs, first in zip(builders, steps.obs, steps.first.tolist(), strict=True):
                builder.observe(obs, first)
            opens = np.array([builder.opens for builder in builders])
        with self.watch.phase("inference"):
            wait = self._inference.act(params, steps.obs, steps.first, steps.env_id, opens)
        self._acting_version = version
        return _UnderWay(steps.env_id, opens, version, wait)

    def _answer(self, under_way: _UnderWay, send: bool) -> None:
        with self.watch.phase("inference"):
            chosen = under_way.wait()
        if send:
            self._pool.send(chosen.action, under_way.env_id, under_way.version)
        # The environments work while this is written.
        finished = []
        with self.watch.phase("fragments"):
            opens = under_way.opens.tolist()
            memory = _rows(chosen.memory, sum(opens))
            logp, value = chosen.logp.tolist(), chosen.value.tolist()
            for k, env_id in enumerate(under_way.env_id.tolist()):
                action = {name: a[k] for name, a in chosen.action.items()}
                decision = Decision(action, logp[k], value[k], under_way.version)
                state = next(memory) if opens[k] else None
                fragment = self._builders[env_id].decide(decision, state)
                self._episodes[env_id].version = under_way.version
                if fragment is not None:
                    finished.append(fragment)
        self._send(finished)

    def _record_outcomes(self, steps: EnvironmentSteps, params: Params) -> None:
        final_value = np.zeros(len(steps.env_id), np.float32)
        cut = np.flatnonzero(steps.truncated & ~steps.terminated)
        if len(cut):
            final_obs = [obs for k in cut.tolist() if (obs := steps.final_obs[k]) is not None]
            assert len(final_obs) == len(cut), "a truncated step comes with the episode's last observation"
            with self.watch.phase("inference"):
                final_value[cut] = self._inference.value(params, final_obs, steps.env_id[cut])
        episodes, fragments = [], []
        outcomes = zip(
            steps.env_id.tolist(), steps.failed.tolist(), steps.reward.tolist(), steps.terminated.tolist(),
            steps.truncated.tolist(), final_value.tolist(), steps.info, strict=True,
        )  # fmt: skip
        for env_id, failed, reward, terminated, truncated, value, info in outcomes:
            builder, episode = self._builders[env_id], self._episodes[env_id]
            if failed:
                fragment = builder.cut()
                if fragment is not None:
                    fragments.append(fragment)
                episode.begin()
                continue
            if not builder.awaits_outcome:  # the first receipt of the environment
                continue
            builder.outcome(reward, terminated, truncated, value)
            episode.add(reward, self._discount)
            if terminated or truncated:
                episodes.append(episode.finished(self._tasks[env_id], info))
                episode.begin()
        if episodes:
            with self._lock:
                self._finished_episodes.extend(episodes)
        self._send(fragments)

    def _send(self, fragments: list[SampleFragment]) -> None:
        if not fragments:
            return
        with self.watch.phase("send"):
            for fragment in fragments:
                self._emit(fragment)
        with self._changed:
            if self._permitted is not None:
                self._permitted = (self._permitted[0], self._permitted[1] - len(fragments))

    def _describe_environment(self, env_id: int) -> Describe:
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


@dataclass
class _EpisodeSoFar:
    """Of one environment's episode under way.

    Attributes:
      total_reward, discounted_return, length: up to now.
      weight: discount ** length.
      version: of the policy that acted last.
    """

    total_reward: float = 0.0
    discounted_return: float = 0.0
    length: int = 0
    weight: float = 1.0
    version: int = -1

    def begin(self) -> None:
        self.total_reward = self.discounted_return = 0.0
        self.length, self.weight = 0, 1.0

    def add(self, reward: float, discount: float) -> None:
        self.total_reward += reward
        self.discounted_return += self.weight * reward
        self.weight *= discount
        self.length += 1

    def finished(self, task: str, info: Mapping[str, Any]) -> Episode:
        return Episode(
            total_reward=self.total_reward,
            discounted_return=self.discounted_return,
            length=self.length,
            success=said_success(info),
            task=task,
            policy_version=self.version,
            reward_terms=said_reward_terms(info),
        )


def _rows(tree: Any, count: int) -> Iterator[Any]:
    """Each row of a tree of [count, ...] in memory of its own."""
    for row in range(count):
        yield jax.tree.map(lambda leaf, row=row: leaf[row].copy(), tree)
