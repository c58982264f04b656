"""What the workers report, gathered for the learner's metrics."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from minestudio_jax.envs.env import REWARD_PREFIX
from minestudio_jax.rollout.env_pool import FAILURE_CAUSES
from minestudio_jax.rollout.episode_statistics import Episode, EpisodeStatistics
from minestudio_jax.rollout.rollout_worker import WorkerReport
from minestudio_jax.trainer.state import Counters
from minestudio_jax.utils.metrics import BackgroundJsonLines, newest_records

_LOOK_BACK = 200_000  # lines, about a second's: a task that never ended an episode must not have all of them read

log = logging.getLogger(__name__)


class RolloutStatistics:
    """Adds up reports from the manager's thread; drained once an iteration by the learner's.

    Args:
      path: file that every episode is written to. Those that are in it already fill the windows of the last 20, as if
        the run had never stopped.
      tasks: that are played.
      counters: the learner's, asked for every episode.
    """

    def __init__(self, path: Path, tasks: Iterable[str], counters: Callable[[], Counters]) -> None:
        self._lock = threading.Lock()
        self._episode_log = BackgroundJsonLines(path)
        self._counters = counters
        self._episodes = EpisodeStatistics(tasks)
        self._recall(path)
        self._seconds: dict[str, float] = {}
        self._env_counts: Counter[str] = Counter()

    def add(self, worker_id: int, report: WorkerReport) -> None:
        """Takes one worker's report."""
        with self._lock:
            self._env_counts += Counter({"starts": report.env_starts, "recycled": report.env_recycled})
            self._env_counts += Counter({f"failures/{cause}": n for cause, n in report.env_failures.items()})
            self._episodes.add(report.episodes)
            for phase, seconds in report.seconds.items():
                self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
            counters = self._counters()
            for episode in report.episodes:
                self._episode_log.write(
                    {
                        "iteration": counters.iteration,
                        "env_steps": counters.env_steps,
                        "worker": worker_id,
                        "task": episode.task,
                        "return": episode.total_reward,
                        "discounted_return": episode.discounted_return,
                        "length": episode.length,
                        "success": episode.success,
                        "policy_version": episode.policy_version,
                        **{f"{REWARD_PREFIX}{term}": paid for term, paid in episode.reward_terms.items()},
                    }
                )

    def drain(self) -> dict[str, float]:
        """Metrics since the last call; `rollout/<phase>_s` is summed over workers."""
        with self._lock:
            metrics = self._episodes.drain()
            metrics |= {f"rollout/{phase}_s": seconds for phase, seconds in sorted(self._seconds.items())}
            counts, self._env_counts = self._env_counts, Counter()
            self._seconds = {}
        failures = {f"failures/{cause}": counts[f"failures/{cause}"] for cause in FAILURE_CAUSES}
        for name, count in {"starts": counts["starts"], "recycled": counts["recycled"], **failures}.items():
            metrics[f"rollout/env_{name}"] = float(count)
        metrics["rollout/env_failures"] = float(sum(failures.values()))
        return metrics

    def return_mean(self) -> float:
        """Mean return of the last 20 episodes; NaN before there were so many."""
        with self._lock:
            return self._episodes.full_window_mean()

    def _recall(self, path: Path) -> None:
        damaged = 0

        def episodes() -> Iterator[Episode]:
            nonlocal damaged
            for record in islice(newest_records(path), _LOOK_BACK):
                try:
                    yield _episode(record)
                except (KeyError, TypeError, ValueError):
                    damaged += 1

        self._episodes.recall(episodes())
        if damaged:
            log.warning(
                "%d line(s) at the end of %s are no episodes and are left out of the means over the last 20",
                damaged,
                path,
            )

    def close(self) -> None:
        """Closes the file; nothing may be added any more."""
        self._episode_log.close()


def _episode(record: Any) -> Episode:
    """What a line of the file says.

    Raises:
      KeyError, TypeError, ValueError: it is not one that was written there.
    """

    def number(name: str) -> float:
        return math.nan if record[name] is None else float(record[name])  # JSON knows no NaN

    success = record["success"]
    return Episode(
        number("return"),
        number("discounted_return"),
        int(record["length"]),
        None if success is None else bool(success),
        str(record["task"]),
        int(record["policy_version"]),
        {name.removeprefix(REWARD_PREFIX): number(name) for name in record if name.startswith(REWARD_PREFIX)},
    )
