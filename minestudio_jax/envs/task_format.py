"""The format of task files: from mappings, lists, numbers and words to a checked Task.

Simulator side: NumPy and the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Dict, Optional, Tuple

from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.nearest import did_you_mean
from minestudio_jax.envs.tasks import (
    ACTION_SETS,
    ANY,
    DAY_TICKS,
    EQUIPMENT,
    EVENTS,
    NEXT,
    SLOTS,
    STACK_SIZE,
    STRUCTURE,
    STRUCTURES,
    FastReset,
    MobGroup,
    Place,
    RewardTerm,
    Stack,
    Success,
    Task,
)

TIMES = {"day": 1000, "noon": 6000, "night": 13000, "midnight": 18000}  # as Minecraft's command knows them
WEATHERS = ("clear", "rain", "thunder")
HOTBAR = tuple("hotbar.%d" % i for i in range(1, 10))
KEYS = (*BUTTONS, "camera", "hotbar")
MAX_MOBS = 200
_SLOT_NAMES = (*EQUIPMENT, ANY, NEXT, *(str(i) for i in range(SLOTS)))


def task_from_dict(values: Mapping[str, Any], where: str) -> Task:
    """A task from what its file holds, or `task_to_dict` made of one.

    Args:
      values: the file's contents.
      where: the file, for the error.
    Raises:
      ValueError: a key is missing, unknown or of the wrong kind; unknown words are answered with the nearest.
    """
    _check_keys(values, Task, where)
    known = {key: _PARTS[key](value, f"{where}: {key}") if key in _PARTS else value for key, value in values.items()}
    for key in ("name", "text"):
        if not isinstance(known[key], str):
            raise ValueError(f"{where}: {key}={known[key]!r} must be a text")
    task = Task(**known)
    if task.fast_reset is not None and any(place.seed is not None for place in task.spawn):
        raise ValueError(
            f"{where}: spawn has seeds, which make new worlds, and fast_reset keeps the world: remove one of them"
        )
    if task.fast_reset is not None and any(place.position is not None for place in task.spawn):
        raise ValueError(f"{where}: spawn and fast_reset both say where an episode begins: remove one of them")
    return task


def one_of(word: Any, known: Iterable[str], where: str) -> str:
    """The word, if it is known.

    Raises:
      ValueError: it is not; names the nearest, or all that are.
    """
    names = list(known)
    if word in names:
        return str(word)
    raise ValueError(f"{where}={word!r} is not one of {', '.join(names)}{did_you_mean(word, names)}")


def whole_number(value: Any, where: str, least: int, most: Optional[int] = None) -> int:
    """The number, if it is whole and within its bounds; raises ValueError if not."""
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{where}={value!r} must be a whole number, {bounds}")
    return value


def _reward(values: Any, where: str) -> Tuple[RewardTerm, ...]:
    if not _is_list(values):
        raise ValueError(f"{where} must be a list of terms")
    terms = tuple(_rule(term, RewardTerm, f"{where} {i}") for i, term in enumerate(values))
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two terms are called {name!r}; each is logged under its own name")
    return terms


def _rule(values: Any, kind: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping such as {{event: mine_block, objects: [oak_log]}}")
    _check_keys(values, kind, where)
    term = kind is RewardTerm
    event = one_of(values["event"], (*EVENTS, STRUCTURE) if term else EVENTS, f"{where}: event")
    objects = values["objects"]
    if not _is_list(objects) or not objects or not all(isinstance(name, str) for name in objects):
        raise ValueError(f"{where}: objects must be a list of names")
    checked = {**values, "objects": tuple(_bare(name) for name in objects)}
    if not term:
        whole_number(values.get("count", 1), f"{where}: count", 1)
        _boolean(values.get("ends", False), f"{where}: ends")
        return kind(**checked)
    name, amount = values["name"], values["reward"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: name={name!r} must be a text")
    if not _is_number(amount) or not math.isfinite(amount):
        raise ValueError(f"{where}: reward={amount!r} is not a number")
    limit = whole_number(values.get("max_times", 0), f"{where}: max_times", 0)
    per = one_of(values.get("per", "step"), ("step", "count"), f"{where}: per")
    if event == STRUCTURE:
        for name in objects:
            one_of(name, STRUCTURES, f"{where}: objects")
        if limit or per != "step" or len(objects) != 1:
            raise ValueError(f"{where}: a structure is one, and its score has neither max_times nor per")
    return kind(**checked)


def _success(values: Any, where: str) -> Optional[Success]:
    return None if values is None else _rule(values, Success, where)


def _spawn(values: Any, where: str) -> Tuple[Place, ...]:
    places = []
    for i, value in enumerate(values if _is_list(values) else [values]):
        at = f"{where} {i}"
        if not isinstance(value, Mapping):
            raise ValueError(f"{at} must be a mapping such as {{seed: 3, position: [12.5, 70, -8.5]}}")
        _check_keys(value, Place, at)
        position, seed = value.get("position"), value.get("seed")
        if position is not None:
            if not _is_list(position) or len(position) != 3 or not all(_is_number(x) for x in position):
                raise ValueError(f"{at}: position={position!r} must be three numbers: x, y (height) and z")
            position = tuple(float(x) for x in position)
        if seed is not None:
            whole_number(seed, f"{at}: seed", 0, 2**31 - 1)
        if position is None and seed is None:
            raise ValueError(f"{at} has neither position nor seed")
        places.append(Place(position, seed))
    return tuple(places)


def _time(value: Any, where: str) -> int:
    if isinstance(value, str):
        return TIMES[one_of(value, TIMES, where)]
    return whole_number(value, where, 0, DAY_TICKS - 1)


def _weather(value: Any, where: str) -> str:
    return "" if value == "" else one_of(value, WEATHERS, where)


def _inventory(values: Any, where: str) -> Tuple[Stack, ...]:
    if isinstance(values, Mapping):
        values = [{"item": item, "count": count} for item, count in values.items()]
    if not _is_list(values):
        raise ValueError(f"{where} must be a mapping of items to counts, or a list such as [{{item: bow, slot: 0}}]")
    stacks = tuple(_stack(value, f"{where} {i}") for i, value in enumerate(values))
    taken = [stack.slot for stack in stacks if stack.slot not in (ANY, NEXT)]
    for slot in taken:
        if taken.count(slot) > 1:
            raise ValueError(f"{where}: slot {slot} is filled twice")
    slots = (-(-stack.count[1] // STACK_SIZE) for stack in stacks if stack.slot not in EQUIPMENT)
    if sum(slots) > SLOTS:
        raise ValueError(f"{where}: what it says does not fit into {SLOTS} slots")
    return stacks


def _stack(values: Any, where: str) -> Stack:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping such as {{item: obsidian, count: 64, slot: offhand}}")
    _check_keys(values, Stack, where)
    items, count = values["item"], values.get("count", 1)
    items = tuple(items) if _is_list(items) else (items,)
    if not items or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{where}: item={values['item']!r} must be a name, or a list of names of which one is drawn")
    least, most = count if _is_list(count) and len(count) == 2 else (count, count)
    # Air is nothing: a slot for which 0 is drawn stays empty.
    whole_number(least, f"{where}: count", 0)
    whole_number(most, f"{where}: count", max(least, 1))
    slot = one_of(str(values.get("slot", NEXT)), _SLOT_NAMES, f"{where}: slot")
    if slot != NEXT and most > STACK_SIZE:
        raise ValueError(f"{where}: count={most} does not fit into one slot: {STACK_SIZE} at most")
    return Stack(tuple(_bare(item) for item in items), (least, most), slot)


def _mobs(values: Any, where: str) -> Tuple[MobGroup, ...]:
    if isinstance(values, Mapping):
        values = [{"name": name, "number": number} for name, number in values.items()]
    if not _is_list(values):
        raise ValueError(f"{where} must be a mapping of kinds to numbers, or a list such as [{{name: cow, number: 5}}]")
    groups = []
    for i, value in enumerate(values):
        at = f"{where} {i}"
        if not isinstance(value, Mapping):
            raise ValueError(f"{at} must be a mapping such as {{name: sheep, number: 50, range: 15}}")
        _check_keys(value, MobGroup, at)
        number = whole_number(value["number"], f"{at}: number", 0, MAX_MOBS)
        reach = whole_number(value.get("range", 10), f"{at}: range", 5, 100)
        groups.append(MobGroup(_bare(str(value["name"])), number, reach))
    return tuple(groups)


def _commands(values: Any, where: str) -> Tuple[str, ...]:
    if not _is_list(values) or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"{where} must be a list of commands such as '/give @p minecraft:bow 1'")
    return tuple("/" + value.strip().lstrip("/") for value in values)


def _mask(values: Any, where: str) -> Optional[Tuple[str, ...]]:
    if values is None:
        return None
    if not _is_list(values):
        raise ValueError(f"{where} must be a list of keys such as [attack, inventory]")
    keys = [one_of(value, KEYS, f"{where}: key") for value in values]
    spelt = [name for key in keys for name in (HOTBAR if key == "hotbar" else (key,))]
    return tuple(name for name in (*BUTTONS, "camera") if name in spelt)


def _fast_reset(values: Any, where: str) -> Optional[FastReset]:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping such as {{biomes: [plains], range: 1000}}")
    _check_keys(values, FastReset, where)
    biomes = values.get("biomes", ())
    if not _is_list(biomes) or not all(isinstance(biome, str) for biome in biomes):
        raise ValueError(f"{where}: biomes={biomes!r} must be a list of names")
    return FastReset(tuple(_bare(biome) for biome in biomes), whole_number(values.get("range", 1000), where, 1))


def _ticks(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}={value!r} must be a number of ticks, at least 1")
    return value


def _biome(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}={value!r} must be a name such as plains")
    return _bare(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}={value!r} must be true or false")
    return value


def _world(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping")
    return dict(values)


def _actions(value: Any, where: str) -> str:
    return one_of(value, ACTION_SETS, where)


_PARTS: Dict[str, Callable[[Any, str], Any]] = {
    "reward": _reward, "time_limit": _ticks, "success": _success, "biome": _biome, "spawn": _spawn, "time": _time,
    "weather": _weather, "inventory": _inventory, "mobs": _mobs, "commands": _commands, "mask": _mask,
    "fast_reset": _fast_reset, "actions": _actions, "crafting": _boolean, "world": _world,
}  # fmt: skip


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bare(name: str) -> str:
    """Without Minecraft's namespace."""
    return name[len("minecraft:") :] if name.startswith("minecraft:") else name


def _check_keys(values: Mapping[str, Any], kind: Any, where: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            hint = did_you_mean(key, fields)
            raise ValueError(f"{where}: there is no key {key!r}{hint} (known are {', '.join(fields)})")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise ValueError(f"{where}: {name} is missing")
