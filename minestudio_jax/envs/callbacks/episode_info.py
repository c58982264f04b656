"""What is told of an episode when it ends."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

from minestudio_jax.envs.callbacks.counting import Statistics
from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator


class EpisodeInfo(Callback):
    """Adds to the last step's info what was counted in the episode, event -> name -> count, and how the player is."""

    def __init__(self) -> None:
        self._first: Statistics = {}

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._first = outcome.frame.statistics
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        if not (outcome.terminated or outcome.truncated):
            return outcome
        told: Dict[str, Any] = {}
        for event, counts in outcome.frame.statistics.items():
            before = self._first.get(event, {})
            risen = {name: int(count) - int(before.get(name, 0)) for name, count in counts.items()}
            told[event] = {name: rise for name, rise in risen.items() if rise > 0}
        state = outcome.frame.state
        told.update((ours, state[theirs]) for theirs, ours in _PLAYER if theirs in state)
        return dataclasses.replace(outcome, info={**told, **outcome.info})


_PLAYER = (("health", "health"), ("food", "food_level"))
