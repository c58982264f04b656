"""Rewards by event."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Dict, List

from minestudio_jax.envs.callbacks.counting import EpisodeCount
from minestudio_jax.envs.env import REWARD_PREFIX
from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator
from minestudio_jax.envs.tasks import RewardTerm


class Rewards(Callback):
    """Adds what the terms pay to the step's reward, and to its info, as "reward/<name>", each one's sum so far.

    Args:
      terms: of statistics, not of structures.
    """

    def __init__(self, terms: Sequence[RewardTerm]) -> None:
        self._terms = tuple(terms)
        self._counts = [EpisodeCount(term.event, term.objects) for term in terms]
        self._paid: List[int] = [0] * len(self._terms)

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        for count in self._counts:
            count.begin(outcome.frame.statistics)
        self._paid = [0] * len(self._terms)
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        reward = outcome.reward
        sums: Dict[str, float] = {}
        for i, term in enumerate(self._terms):
            times = self._counts[i].rise(outcome.frame.statistics)
            if term.per == "step":
                times = min(times, 1)
            if term.max_times:
                times = min(times, term.max_times - self._paid[i])
            self._paid[i] += times
            reward += times * term.reward
            sums[REWARD_PREFIX + term.name] = self._paid[i] * term.reward
        return dataclasses.replace(outcome, reward=reward, info={**outcome.info, **sums})
