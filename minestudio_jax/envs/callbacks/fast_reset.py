"""A new episode in the world there is: seconds instead of the minute that a new world takes."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.envs.minecraft import Callback, Frame, Outcome, Simulator, no_keys, run_commands, wait
from minestudio_jax.envs.tasks import FastReset as FastResetRule

LOAD_TICKS = 20  # until the land around is there
REVIVAL_TICKS = 100
TRIES = 8  # places looked at where the game cannot find a biome by itself
_NEARBY = 16  # blocks around the place that was drawn, in which the game looks for ground to stand on

# The player becomes as at first without dying, which would end the mission in some simulators and count as a death.
_AS_NEW = (
    "/clear @p",
    "/effect clear @p",
    "/effect give @p minecraft:instant_health 1 10 true",
    "/effect give @p minecraft:saturation 1 20 true",
    "/experience set @p 0 points",
    "/experience set @p 0 levels",
    "/kill @e[type=!player]",
    "/kill @e[type=item]",  # what those have left
)


class FastReset(Callback):
    """Keeps the world from the second episode on and sends the player, as new, somewhere else in it.

    What was built and dug stays, far away, and so do the statistics: rewards are taken from their rises. When the game
    has ended the mission, as it does at a death, there is a new world all the same.

    Args:
      rule: biomes and range.
      random: for the place.
      finds_biomes: the game has MineStudio's command `teleportbiome`; else places are tried until the biome is right, a
        few times, the last one being taken as it is.
      load_ticks: after the player has been sent there.
    """

    def __init__(
        self, rule: FastResetRule, random: Random, finds_biomes: bool = True, load_ticks: int = LOAD_TICKS
    ) -> None:
        self._rule, self._random = rule, random
        self._finds_biomes, self._load_ticks = finds_biomes, load_ticks

    def before_reset(self, simulator: Simulator, new_world: bool) -> bool:
        return False

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        if outcome.new_world:
            return outcome
        frame = _at_rest(simulator, _alive(simulator, outcome.frame))
        return dataclasses.replace(outcome, frame=self._sent(simulator, run_commands(simulator, _AS_NEW, frame)))

    def _sent(self, simulator: Simulator, frame: Frame) -> Frame:
        half = self._rule.range // 2
        for _ in range(TRIES):
            x, z = self._random.randint(-half, half), self._random.randint(-half, half)
            if self._rule.biomes and self._finds_biomes:
                biome = self._random.choice(self._rule.biomes)
                frame = run_commands(simulator, [f"/teleportbiome @a {biome} {x} ~0 {z}"], frame)
                return wait(simulator, self._load_ticks, frame)
            frame = run_commands(simulator, [f"/spreadplayers {x} {z} 0 {_NEARBY} false @p"], frame)
            frame = wait(simulator, self._load_ticks, frame)
            if not self._rule.biomes or str(frame.state.get("biome")).rpartition(":")[2] in self._rule.biomes:
                break
        return frame


def _at_rest(simulator: Simulator, frame: Frame) -> Frame:
    """The frame in which no screen is open, the first slot is in the hand, and the player looks straight ahead.

    A screen is closed first: in it the hotbar's keys move items, and what lies in it comes back to be cleared away.
    """
    if not frame.done and frame.state.get("is_gui_open", False):
        frame = simulator.step({**no_keys(), "inventory": 1})
    if not frame.done:
        level = np.array([-frame.state.get("pitch", 0.0), 0.0])
        frame = simulator.step({**no_keys(), "hotbar.1": 1, "camera": level})
    return frame


def _alive(simulator: Simulator, frame: Frame) -> Frame:
    """The frame in which a player who has died is back."""
    for _ in range(REVIVAL_TICKS):
        if frame.done or frame.state.get("is_alive", True):
            return frame
        frame = wait(simulator, 1, frame)
    raise EnvironmentFailure(f"the player has been dead for {REVIVAL_TICKS} ticks: the game does not revive him")
