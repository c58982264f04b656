"""What the workers report, gathered for the learner's metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable

from minestudio_jax.rollout.episode_statistics import EpisodeStatistics
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.utils.metrics import JsonLines


class RolloutStatistics:
    """Adds up reports from the manager's thread; drained once an iteration by the learner's.

    Args:
      env_steps: environment steps of the run before this process.
      episodes: file that every episode is written to.
      iteration: the learner's finished iterations, asked for every episode.
    """

    def __init__(self, env_steps: int, episodes: JsonLines, iteration: Callable[[], int]) -> None:
        self._lock = threading.Lock()
        self._episode_log = episodes
        self._iteration = iteration
        self._episodes = EpisodeStatistics()
        self._seconds: dict[str, float] = {}
        self._env_failures = 0
        self.env_steps = env_steps

    def add(self, worker_id: int, report: WorkerReport) -> None:
        """Takes one worker's report."""
        with self._lock:
            self.env_steps += report.env_steps
            self._env_failures += report.env_failures
            self._episodes.add(report.episodes)
            for phase, seconds in report.seconds.items():
                self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
            for episode in report.episodes:
                self._episode_log.write(
                    {
                        "iteration": self._iteration(),
                        "env_steps": self.env_steps,
                        "worker": worker_id,
                        "task": episode.task,
                        "return": episode.total_reward,
                        "length": episode.length,
                        "policy_version": episode.policy_version,
                    }
                )

    def drain(self) -> dict[str, float]:
        """Metrics since the last call; `rollout/<phase>_s` is summed over workers."""
        with self._lock:
            metrics = self._episodes.drain()
            metrics |= {f"rollout/{phase}_s": seconds for phase, seconds in sorted(self._seconds.items())}
            metrics["rollout/env_failures"] = float(self._env_failures)
            self._seconds, self._env_failures = {}, 0
        return metrics
