"""What a task is: text, begin, actions, rewards by event, end. The same for the embedded world and for Minecraft.

Simulator side: NumPy and the standard library only, Python 3.8 syntax. Tasks are written as data files
(`minestudio_jax/tasks/`); `utils/task_files.py` reads them, `task_format.py` checks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

# Groups of Minecraft's statistics.
EVENTS = (
    "mine_block", "pickup", "drop", "craft_item", "use_item", "break_item", "kill_entity", "entity_killed_by", "custom",
)  # fmt: skip
STRUCTURE = "structure"  # an event beside them: how much of a structure stands around the player
STRUCTURES = ("nether_portal",)
# Of "custom", those that are ours and not Minecraft's.
CLIMB = "climb_one_block"
GOAL_EVENTS = ("approach_one_block", "reach_goal")
ACTION_SETS = ("gathering", "fighting", "building", "crafting")
EQUIPMENT = ("offhand", "head", "chest", "legs", "feet")
SLOTS = 36  # of the inventory, the first nine of them the hotbar
STACK_SIZE = 64  # the most that a slot holds; of tools and the like it is less
NEXT, ANY = "next", "random"  # slots: the first that is free, and one of those that are
TICKS_PER_S = 20
DAY_TICKS = 24000


@dataclass(frozen=True)
class RewardTerm:
    """Pays when the episode's count of an event rises.

    Attributes:
      name: under which it is logged.
      event: group of Minecraft's statistics, or "structure".
      objects: names within the group, without the namespace; a rise of any of them counts.
      reward: what is paid. For a structure: for each point by which its score rises, and taken back as it falls.
      max_times: how often in an episode; 0 is without limit.
      per: "step" pays once a tick however far the count rises, "count" as many times as it rises.
    """

    name: str
    event: str
    objects: Tuple[str, ...]
    reward: float
    max_times: int = 0
    per: str = "step"


@dataclass(frozen=True)
class Success:
    """The task is solved when the episode's counts of these objects add up to `count`.

    Attributes:
      event, objects: as in RewardTerm, but no structure.
      count: of all objects together.
      ends: the episode terminates then.
    """

    event: str
    objects: Tuple[str, ...]
    count: int = 1
    ends: bool = False


@dataclass(frozen=True)
class Stack:
    """Items that the player begins with.

    Attributes:
      item: names, of which each episode draws one.
      count: least and most, between which each episode draws a number.
      slot: "0" to "35" (below 9: the hotbar, 0 in the hand), one of EQUIPMENT, "random", or "next".
    """

    item: Tuple[str, ...]
    count: Tuple[int, int] = (1, 1)
    slot: str = NEXT


@dataclass(frozen=True)
class MobGroup:
    """Mobs that there are at first.

    Attributes:
      name: kind.
      number: how many.
      range: blocks; each stands between 4 blocks from the player and so far.
    """

    name: str
    number: int
    range: int = 10


@dataclass(frozen=True)
class Place:
    """Where an episode may begin.

    Attributes:
      position: x, y, z of the player; None: where the world puts him.
      seed: of the world; None: any.
    """

    position: Optional[Tuple[float, float, float]] = None
    seed: Optional[int] = None


@dataclass(frozen=True)
class FastReset:
    """Episodes after the first go on in the same world, elsewhere: only to save time, so that an engine which takes no
    commands, and the embedded world, may make new worlds all the same.

    Attributes:
      biomes: where each episode draws one; empty: anywhere.
      range: blocks, side of the square around the world's middle in which the place is drawn.
    """

    biomes: Tuple[str, ...] = ()
    range: int = 1000


@dataclass(frozen=True)
class Task:
    """
    Attributes:
      name: of the task.
      text: what is asked, in a sentence.
      reward: terms, added up.
      time_limit: ticks of 1/20 s after which an episode is truncated; presets and settings may shorten it.
      success: None if the task is never finished.
      biome: that the world is to begin in; "": any.
      spawn: places, of which each episode draws one; empty: where the world puts the player.
      time: ticks since dawn at which an episode begins, 0..23999; None: as the world has it.
      weather: "clear", "rain" or "thunder"; "": as the world has it.
      inventory: what the player begins with.
      mobs: there are at first.
      commands: of Minecraft, carried out in this order when everything else is as it shall be.
      mask: keys that are ruled out: of `actions.BUTTONS`, and "camera". None: the policy sees no mask.
      fast_reset: how the world is kept where that saves time; None: every episode has a new one.
      actions: the small action set that suffices, one of ACTION_SETS.
      crafting: whether there is a craft action.
      world: settings of the embedded world that the task needs; ignored in Minecraft.
    """

    name: str
    text: str
    reward: Tuple[RewardTerm, ...]
    time_limit: int = 1200
    success: Optional[Success] = None
    biome: str = ""
    spawn: Tuple[Place, ...] = ()
    time: Optional[int] = None
    weather: str = ""
    inventory: Tuple[Stack, ...] = ()
    mobs: Tuple[MobGroup, ...] = ()
    commands: Tuple[str, ...] = ()
    mask: Optional[Tuple[str, ...]] = None
    fast_reset: Optional[FastReset] = None
    actions: str = "gathering"
    crafting: bool = False
    world: Mapping[str, Any] = field(default_factory=dict)


def events_of(task: Task) -> Tuple[Tuple[str, str, Tuple[str, ...]], ...]:
    """What a task's rules count: (where, event, objects) of each."""
    rules = tuple((f"reward {term.name!r}", term.event, term.objects) for term in task.reward)
    if task.success is None:
        return rules
    return (*rules, ("success", task.success.event, task.success.objects))


def with_common_actions(tasks: Mapping[str, Task]) -> Dict[str, Task]:
    """The tasks of one run, so that one policy can play them.

    If it sees a mask in one of them, it does in all; and if it can craft in one, it can in all.
    """
    crafting = any(task.crafting for task in tasks.values())
    masked = any(task.mask is not None for task in tasks.values())
    return {
        name: dataclasses.replace(task, crafting=crafting, mask=task.mask or () if masked else None)
        for name, task in tasks.items()
    }


def task_to_dict(task: Task) -> Dict[str, Any]:
    """The task as its file would hold it, in JSON's kinds of values; `task_from_dict` makes it again."""
    values = dataclasses.asdict(task)
    return {key: value for key, value in values.items() if value is not None}
