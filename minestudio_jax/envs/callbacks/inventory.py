"""What the player begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import List

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator, run_commands
from minestudio_jax.envs.tasks import ANY, EQUIPMENT, NEXT, SLOTS, Stack

_HOTBAR = 9


class StartInventory(Callback):
    """Fills the inventory: first the slots that are named, then random ones, then the next ones that are free.

    Args:
      stacks: the task's.
      random: for items, counts and slots that are drawn.
    """

    def __init__(self, stacks: Sequence[Stack], random: Random) -> None:
        self._stacks, self._random = tuple(stacks), random

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        return dataclasses.replace(outcome, frame=run_commands(simulator, self.commands(), outcome.frame))

    def commands(self) -> List[str]:
        """Those of one episode, with what is drawn for it."""
        named = {stack.slot for stack in self._stacks}
        free = [str(slot) for slot in range(SLOTS) if str(slot) not in named]
        anywhere = self._random.sample(free, sum(stack.slot == ANY for stack in self._stacks))
        placed, given = [], []
        for stack in self._stacks:
            item, count = self._random.choice(stack.item), self._random.randint(*stack.count)
            slot = anywhere.pop() if stack.slot == ANY else stack.slot
            if count and slot == NEXT:
                given.append(f"/give @p minecraft:{item} {count}")
            elif count:
                placed.append(f"/replaceitem entity @p {slot_name(slot)} minecraft:{item} {count}")
        return placed + given


def slot_name(slot: str) -> str:
    """Minecraft's name of a slot of ours."""
    if slot in EQUIPMENT:
        return ("weapon." if slot == "offhand" else "armor.") + slot
    number = int(slot)
    return f"hotbar.{number}" if number < _HOTBAR else f"inventory.{number - _HOTBAR}"
