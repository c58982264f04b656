"""Height gained, which Minecraft does not count."""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

from minestudio_jax.envs.minecraft import Callback, Frame, Outcome, Simulator
from minestudio_jax.envs.tasks import CLIMB

_AT_REST = 1e-3  # blocks; nobody who jumps or falls stays this near to his height for a tick


class Climbing(Callback):
    """Adds `climb_one_block` to the custom statistics: whole blocks above the first place, where the player stands."""

    def __init__(self) -> None:
        self._start: Optional[float] = None
        self._before: Optional[float] = None
        self._highest = 0

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._start = self._before = _height(outcome.frame)
        self._highest = 0
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        frame, height = outcome.frame, _height(outcome.frame)
        if height is not None and self._start is not None and self._before is not None:
            stands = frame.state.get("on_ground", abs(height - self._before) < _AT_REST)
            climbed = math.floor(height - self._start + 1e-3)
            self._highest = max(self._highest, climbed) if stands else self._highest
        self._before = height
        custom = {**frame.statistics.get("custom", {}), CLIMB: self._highest}
        frame = dataclasses.replace(frame, statistics={**frame.statistics, "custom": custom})
        return dataclasses.replace(outcome, frame=frame)


def _height(frame: Frame) -> Optional[float]:
    position = frame.state.get("position")
    return None if position is None else float(position[1])
