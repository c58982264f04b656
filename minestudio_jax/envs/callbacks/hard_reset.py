"""A place to begin in, in a world of a certain seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Optional

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator, run_commands, wait
from minestudio_jax.envs.tasks import Place

LOAD_TICKS = 50  # until the land around is there


class HardReset(Callback):
    """Begins every episode in a new world, at one of several places.

    Args:
      places: of which each episode draws one.
      random: for that.
      load_ticks: after the player has been put there.
    """

    def __init__(self, places: Sequence[Place], random: Random, load_ticks: int = LOAD_TICKS) -> None:
        self._places, self._random, self._load_ticks = tuple(places), random, load_ticks
        self._place = self._places[0]

    def before_reset(self, simulator: Simulator, new_world: bool) -> bool:
        self._place = self._random.choice(self._places)
        return True

    def world_seed(self, seed: Optional[int]) -> Optional[int]:
        return seed if self._place.seed is None else self._place.seed

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        if self._place.position is None:
            return outcome
        x, y, z = self._place.position
        frame = run_commands(simulator, [f"/tp @p {x:g} {y:g} {z:g}"], outcome.frame)
        return dataclasses.replace(outcome, frame=wait(simulator, self._load_ticks, frame))
