"""Commands at an episode's beginning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator, run_commands, wait


class Commands(Callback):
    """Has the game carry out commands when an episode begins, a tick each, and waits.

    Args:
      commands: such as "/give @p minecraft:bow 1".
      wait_ticks: afterwards; what a command does may show in a frame or two only.
    """

    def __init__(self, commands: Sequence[str], wait_ticks: int = 0) -> None:
        self._commands, self._wait_ticks = tuple(commands), wait_ticks

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        frame = run_commands(simulator, self._commands, outcome.frame)
        return dataclasses.replace(outcome, frame=wait(simulator, self._wait_ticks, frame))
