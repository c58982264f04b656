"""What a task is: text, rewards by event, start, end. The same for the embedded world and for Minecraft.

Simulator side: NumPy and the standard library only, Python 3.8 syntax. Tasks are written as data files
(`configs/tasks/`); `utils/task_files.py` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVENTS = ("mine_block", "pickup", "drop", "craft_item", "use_item", "break_item", "kill_entity", "custom")
ACTION_SETS = ("gathering", "fighting", "building", "crafting")


@dataclass(frozen=True)
class RewardTerm:
    """Pays when the episode's count of an event rises, once a tick at most.

    Attributes:
      name: under which it is logged.
      event: group of Minecraft's statistics.
      objects: names within the group, without the namespace; a rise of any of them counts.
      reward: what is paid.
      max_times: how often in an episode; 0 is without limit.
    """

    name: str
    event: str
    objects: tuple[str, ...]
    reward: float
    max_times: int = 0


@dataclass(frozen=True)
class Success:
    """The task is solved when the episode's counts of these objects add up to `count`.

    Attributes:
      event, objects: as in RewardTerm.
      count: of all objects together.
      ends: the episode terminates then.
    """

    event: str
    objects: tuple[str, ...]
    count: int = 1
    ends: bool = False


@dataclass(frozen=True)
class Task:
    """
    Attributes:
      name: of the task.
      text: what is asked, in a sentence.
      reward: terms, added up.
      time_limit: ticks of 1/20 s after which an episode is truncated; presets and settings may shorten it.
      success: None if the task is never finished.
      inventory: item -> count that the player begins with, the first item in his hand.
      mobs: kind -> how many there are at first.
      actions: the small action set that suffices, one of ACTION_SETS.
      crafting: whether there is a craft action.
      world: settings of the embedded world that the task needs; ignored in Minecraft.
    """

    name: str
    text: str
    reward: tuple[RewardTerm, ...]
    time_limit: int = 1200
    success: Success | None = None
    inventory: Mapping[str, int] = field(default_factory=dict)
    mobs: Mapping[str, int] = field(default_factory=dict)
    actions: str = "gathering"
    crafting: bool = False
    world: Mapping[str, Any] = field(default_factory=dict)


def task_from_dict(values: Mapping[str, Any], where: str) -> Task:
    """A task from what its file holds.

    Args:
      values: the file's contents.
      where: the file, for the error.
    Raises:
      ValueError: a key is missing, unknown or of the wrong kind.
    """
    _check_keys(values, Task, where)
    terms = values.get("reward")
    if not isinstance(terms, list) or not terms:
        raise ValueError(f"{where}: reward must be a list of at least one term")
    known: dict[str, Any] = dict(values)
    known["reward"] = tuple(_event_rule(term, RewardTerm, f"{where}: reward {i}") for i, term in enumerate(terms))
    if values.get("success") is not None:
        known["success"] = _event_rule(values["success"], Success, f"{where}: success")
    for key in ("inventory", "mobs", "world"):
        if not isinstance(known.get(key, {}), Mapping):
            raise ValueError(f"{where}: {key} must be a mapping")
    limit = known.get("time_limit", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"{where}: time_limit={limit!r} must be a number of ticks, at least 1")
    if known.get("actions", ACTION_SETS[0]) not in ACTION_SETS:
        raise ValueError(f"{where}: actions={known['actions']!r} is not one of {', '.join(ACTION_SETS)}")
    return Task(**known)


def _event_rule(values: Any, kind: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping such as {{event: mine_block, objects: [oak_log]}}")
    _check_keys(values, kind, where)
    if values["event"] not in EVENTS:
        raise ValueError(f"{where}: event={values['event']!r} is not one of {', '.join(EVENTS)}")
    if not isinstance(values["objects"], list) or not values["objects"]:
        raise ValueError(f"{where}: objects must be a list of names")
    return kind(**{**values, "objects": tuple(values["objects"])})


def _check_keys(values: Mapping[str, Any], kind: Any, where: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}: there is no key {key!r}; known are {', '.join(fields)}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise ValueError(f"{where}: {name} is missing")
