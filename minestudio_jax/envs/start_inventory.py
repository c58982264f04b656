"""What a player begins with where the engine takes no commands: the mission itself says it.

Simulator side: NumPy and the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from minestudio_jax.envs.env import MisconfiguredEnvironment
from minestudio_jax.envs.tasks import ANY, NEXT, SLOTS, STACK_SIZE, Stack, Task

_EQUIPMENT_SLOTS = {"feet": 36, "legs": 37, "chest": 38, "head": 39, "offhand": 40}


def without_commands(task: Task) -> tuple[Task, tuple[Stack, ...]]:
    """The task without its inventory, and that, for an engine that takes no commands.

    Raises:
      MisconfiguredEnvironment: it needs commands for something else.
    """
    needs = {
        "mobs": bool(task.mobs),
        "commands": bool(task.commands),
        "time": task.time is not None,
        "weather": bool(task.weather),
        "spawn": any(place.position is not None for place in task.spawn),
        "reward": any(term.event == "structure" for term in task.reward),
    }
    if any(needs.values()):
        names = ", ".join(name for name, needed in needs.items() if needed)
        raise MisconfiguredEnvironment(
            f"the task {task.name!r} needs Minecraft's commands for its {names}, and MineRL's engine takes none: play "
            "it with env.factory=minestudio, or set commands=true in env.options for an engine that has learnt them"
        )
    # A fast reset only saves time: without commands every episode has a new world.
    return dataclasses.replace(task, inventory=(), fast_reset=None), tuple(task.inventory)


def drawn_inventory(stacks: Sequence[Stack], rng: np.random.Generator) -> dict[int, dict[str, Any]]:
    """What an episode begins with: first what has a slot of its own, then random slots, then the next free ones.

    Returns:
      number of a slot (0 to 8 hotbar, to 35 inventory, then feet, legs, chest, head and the other hand) -> its stack,
      {"type": name, "quantity": count}.
    """
    found: dict[int, dict[str, Any]] = {}
    named = {stack.slot for stack in stacks}
    for stack in sorted(stacks, key=lambda stack: (stack.slot == NEXT, stack.slot == ANY)):
        item = stack.item[int(rng.integers(len(stack.item)))]
        count = int(rng.integers(stack.count[0], stack.count[1] + 1))
        free = [slot for slot in range(SLOTS) if slot not in found]
        if stack.slot == NEXT:
            slots = free
        elif stack.slot == ANY:
            slots = [int(rng.choice([slot for slot in free if str(slot) not in named]))]
        else:
            slots = [_EQUIPMENT_SLOTS[stack.slot] if stack.slot in _EQUIPMENT_SLOTS else int(stack.slot)]
        for slot, begin in zip(slots, range(0, count, STACK_SIZE)):
            found[slot] = {"type": item, "quantity": min(STACK_SIZE, count - begin)}
    return found
