"""Whether a task is solved."""

from __future__ import annotations

import dataclasses

from minestudio_jax.envs.callbacks.counting import EpisodeCount
from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator
from minestudio_jax.envs.tasks import Success as SuccessRule


class SuccessCondition(Callback):
    """Says "success" in the info, and ends the episode with it if the rule does.

    Args:
      rule: the task's.
    """

    def __init__(self, rule: SuccessRule) -> None:
        self._rule = rule
        self._count = EpisodeCount(rule.event, rule.objects)

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._count.begin(outcome.frame.statistics)
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._count.rise(outcome.frame.statistics)
        success = self._count.total >= self._rule.count
        ends = outcome.terminated or (success and self._rule.ends)
        return dataclasses.replace(outcome, terminated=ends, info={**outcome.info, "success": success})
