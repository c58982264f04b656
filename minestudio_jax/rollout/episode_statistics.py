"""What finished episodes say of the policy. Runs beside the learner, never on the inference path."""

from __future__ import annotations

import logging
import math
import numbers
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minestudio_jax.envs.env import REWARD_PREFIX

QUANTILES = (10, 50, 90)  # per cent, of the returns

log = logging.getLogger(__name__)

_said: set[str] = set()  # what the log has told to be no number


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Attributes:
      total_reward: undiscounted return.
      discounted_return: sum of trainer.discount^t r_t from its first step on.
      length: steps.
      success: whether it was solved; None if the environment does not say.
      task: label.
      policy_version: that chose the last action.
      reward_terms: what each term of the task's reward has paid, as far as the environment says it.
    """

    total_reward: float
    discounted_return: float
    length: int
    success: bool | None
    task: str
    policy_version: int
    reward_terms: Mapping[str, float] = field(default_factory=dict)


def said_success(info: Mapping[str, Any]) -> bool | None:
    """What an environment's info of an episode's last step says of it: its "success", or None."""
    success = info.get("success")
    return None if success is None else bool(success)


def said_reward_terms(info: Mapping[str, Any]) -> dict[str, float]:
    """What an environment's info of an episode's last step says of each term of its reward: its "reward/<name>".

    What is no finite number is left out, and the log says so once for each term.
    """
    terms: dict[str, float] = {}
    for name, paid in info.items():
        if not name.startswith(REWARD_PREFIX):
            continue
        if math.isfinite(number := _number(paid)):
            terms[name.removeprefix(REWARD_PREFIX)] = number
        elif name not in _said:
            _said.add(name)
            log.warning("an environment's info has %r: %r, which is no finite number and is left out", name, paid)
    return terms


def _number(value: Any) -> float:
    """NaN if it is none, or too large for one."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    try:
        return float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        return math.nan


class EpisodeStatistics:
    """Means over the episodes of one iteration, weighted by episode, and over a sliding window.

    Args:
      tasks: that are played.
      window: episodes of one task in its sliding window.
    """

    def __init__(self, tasks: Iterable[str], window: int = 20) -> None:
        self._windows: dict[str, deque[Episode]] = {task: deque(maxlen=window) for task in tasks}
        self._since: list[Episode] = []
        self._terms: list[str] = []  # of rewards, that have been heard of
        self.total = 0

    def add(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            self._since.append(episode)
            self._windows[episode.task].append(episode)
            self._terms += [term for term in episode.reward_terms if term not in self._terms]
            self.total += 1

    def recall(self, newest_first: Iterable[Episode]) -> None:
        """Fills the windows with episodes of an earlier process, before any other is added; none counts again.

        Args:
          newest_first: of which no more are taken than it needs; those of tasks that are no longer played are left out.
        """
        missing = sum(window.maxlen or 0 for window in self._windows.values())
        for episode in newest_first:
            window = self._windows.get(episode.task)
            if window is None or len(window) == window.maxlen:
                continue
            window.appendleft(episode)
            self._terms += [term for term in episode.reward_terms if term not in self._terms]
            missing -= 1
            if not missing:
                return

    def window_mean(self) -> float:
        """Mean return of the last episodes of each task, and of those the mean; NaN before the first."""
        return self._mean_over_windows(_returns)

    def full_window_mean(self) -> float:
        """The same, but NaN before there were as many episodes of every task as a window takes."""
        full = all(len(window) == window.maxlen for window in self._windows.values())
        return self.window_mean() if full else float("nan")

    def drain(self) -> dict[str, float]:
        """Metrics of the episodes since the last call; what is not defined without any is NaN."""
        episodes, self._since = self._since, []
        returns, successes = _returns(episodes), _successes(episodes)
        by_task: dict[str, float] = {}
        if len(self._windows) > 1:
            for task in self._windows:
                its = [e for e in episodes if e.task == task]
                by_task[f"episode/count/{task}"] = float(len(its))
                by_task[f"episode/return_mean/{task}"] = _mean(_returns(its))
                by_task[f"episode/success_rate/{task}"] = _mean(_successes(its))
        by_term = {
            f"episode/{REWARD_PREFIX}{term}": _mean([e.reward_terms[term] for e in episodes if term in e.reward_terms])
            for term in self._terms
        }
        quantiles = np.percentile(returns, QUANTILES) if returns else [float("nan")] * len(QUANTILES)
        return {
            **by_task,
            **by_term,
            "episode/count": float(len(episodes)),
            "episode/return_mean": _mean(returns),
            "episode/return_min": min(returns, default=float("nan")),
            "episode/return_max": max(returns, default=float("nan")),
            **{f"episode/return_p{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            "episode/discounted_return_mean": _mean([e.discounted_return for e in episodes]),
            "episode/length_mean": _mean([e.length for e in episodes]),
            "episode/success_rate": _mean(successes),
            "episode/success_known": float(len(successes)),
            "episode/return_mean_last_20": self.window_mean(),
            "episode/success_rate_last_20": self._mean_over_windows(_successes),
        }

    def _mean_over_windows(self, numbers: Callable[[Iterable[Episode]], list[float]]) -> float:
        return _mean([_mean(its) for window in self._windows.values() if (its := numbers(window))])


def _returns(episodes: Iterable[Episode]) -> list[float]:
    return [e.total_reward for e in episodes]


def _successes(episodes: Iterable[Episode]) -> list[float]:
    """1 or 0 for each of which it is known."""
    return [float(e.success) for e in episodes if e.success is not None]


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else float("nan")
