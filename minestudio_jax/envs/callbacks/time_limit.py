"""The time limit."""

from __future__ import annotations

import dataclasses

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator


class TimeLimit(Callback):
    """Truncates episodes: a limit is no end of the world, and what would have come after is still worth something.

    Args:
      ticks: steps of an episode.
    """

    def __init__(self, ticks: int) -> None:
        self._limit, self._steps = ticks, 0

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._steps = 0
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._steps += 1
        return dataclasses.replace(outcome, truncated=outcome.truncated or self._steps >= self._limit)
