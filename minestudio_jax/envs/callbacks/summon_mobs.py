"""Mobs around the player."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from random import Random
from typing import List

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator, run_commands
from minestudio_jax.envs.tasks import MobGroup

NEAREST = 4.0  # blocks


class SummonMobs(Callback):
    """Summons mobs when an episode begins, three blocks above the player's feet, so that they land on the ground.

    Args:
      groups: the task's.
      random: for their places.
    """

    def __init__(self, groups: Sequence[MobGroup], random: Random) -> None:
        self._groups, self._random = tuple(groups), random

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        return dataclasses.replace(outcome, frame=run_commands(simulator, self.commands(), outcome.frame))

    def commands(self) -> List[str]:
        """Those of one episode, with the places drawn for it."""
        commands = []
        for group in self._groups:
            for _ in range(group.number):
                distance, angle = self._random.uniform(NEAREST, group.range), self._random.uniform(0.0, 2 * math.pi)
                x, z = distance * math.cos(angle), distance * math.sin(angle)
                commands.append(
                    f"/execute as @p at @p run summon minecraft:{group.name} ~{x:.1f} ~3 ~{z:.1f} {{Age:0}}"
                )
        return commands
