"""What finished episodes say of the policy. Runs beside the learner, never on the inference path."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Attributes:
      total_reward: undiscounted return.
      discounted_return: sum over t of discount ** t times reward t, from the episode's first step.
      length: steps.
      success: whether the environment said that the task was solved; None if it does not say.
      task: label.
      policy_version: that chose the last action.
    """

    total_reward: float
    discounted_return: float
    length: int
    success: bool | None
    task: str
    policy_version: int


class EpisodeStatistics:
    """Means over the episodes of one iteration, weighted by episode, and over a sliding window.

    Args:
      tasks: that are played.
      window: episodes of one task in its sliding window.
    """

    def __init__(self, tasks: Iterable[str], window: int = 20) -> None:
        self._windows: dict[str, deque[float]] = {task: deque(maxlen=window) for task in tasks}
        self._since: list[Episode] = []
        self.total = 0

    def add(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            self._since.append(episode)
            self._windows[episode.task].append(episode.total_reward)
            self.total += 1

    def window_mean(self) -> float:
        """Mean return of the last episodes of each task, and of those the mean; NaN before the first."""
        means = [np.mean(window) for window in self._windows.values() if window]
        return float(np.mean(means)) if means else float("nan")

    def full_window_mean(self) -> float:
        """The same, but NaN before there were as many episodes of every task as a window takes."""
        full = all(len(window) == window.maxlen for window in self._windows.values())
        return self.window_mean() if full else float("nan")

    def drain(self) -> dict[str, float]:
        """Metrics of the episodes since the last call; means are NaN if there were none."""
        episodes, self._since = self._since, []
        returns = [e.total_reward for e in episodes]
        lengths = [e.length for e in episodes]
        by_task: dict[str, float] = {}
        if len(self._windows) > 1:
            for task in self._windows:
                its = [e.total_reward for e in episodes if e.task == task]
                by_task[f"episode/count/{task}"] = float(len(its))
                by_task[f"episode/return_mean/{task}"] = float(np.mean(its)) if its else float("nan")
        return {
            **by_task,
            "episode/count": float(len(episodes)),
            "episode/return_mean": float(np.mean(returns)) if returns else float("nan"),
            "episode/return_min": float(np.min(returns)) if returns else float("nan"),
            "episode/return_max": float(np.max(returns)) if returns else float("nan"),
            "episode/length_mean": float(np.mean(lengths)) if lengths else float("nan"),
            "episode/return_mean_last_20": self.window_mean(),
        }
