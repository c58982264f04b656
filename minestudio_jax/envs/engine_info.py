"""What Minecraft's engine tells of a tick, the info JSON of Malmo's protocol, as a frame holds it.

Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

STATISTICS = (
    "mine_block", "craft_item", "use_item", "break_item", "pickup", "drop", "kill_entity", "entity_killed_by", "custom",
)  # fmt: skip

_EMPTY = ("", "air", "none")


def statistics(told: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Group -> name without its namespace -> count since the world began, without zeros.

    Args:
      told: the engine's JSON object.
    """
    found = {}
    for group in STATISTICS:
        counts = {_plain(name): int(count) for name, count in told.get(group, {}).items() if count}
        if counts:
            found[group] = counts
    return found


def state(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine tells besides, under the names of `Frame.state`; what it does not tell is missing.

    Args:
      told: the engine's JSON object.
    """
    life = told.get("life_stats", {})
    found: dict[str, Any] = {}
    for name, value, kind in (
        ("is_alive", life.get("is_alive"), bool),
        ("health", life.get("life", told.get("health")), float),
        ("food", life.get("food", told.get("food_level")), int),
        ("yaw", told.get("yaw"), float),
        ("pitch", told.get("pitch"), float),
        ("is_gui_open", told.get("isGuiOpen"), bool),
        ("biome", told.get("biome_name"), _plain),
    ):
        if value is not None:
            found[name] = kind(value)
    if "health" in found:
        found.setdefault("is_alive", found["health"] > 0)
    if "xpos" in told:
        found["position"] = tuple(float(told[axis]) for axis in ("xpos", "ypos", "zpos"))
    if "inventory" in told:
        found["inventory"] = _inventory(told["inventory"])
    if "equipped_items" in told:
        found["equipped_items"] = {slot: _item(item) for slot, item in told["equipped_items"].items()}
    if "voxels" in told:
        found["voxels"] = [{**voxel, "type": _plain(voxel["type"])} for voxel in told["voxels"]]
    return found


def _inventory(stacks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stacks that are not empty; their slots only if told: MineRL's engine gives none, MineStudio's does."""
    found = []
    for stack in stacks:
        item, quantity = _plain(stack["type"]), int(stack["quantity"])
        if item in _EMPTY or quantity == 0:
            continue
        slot = stack.get("slot_id", stack.get("slot"))
        found.append({**({} if slot is None else {"slot": int(slot)}), "type": item, "quantity": quantity})
    return found


def _item(item: Any) -> dict[str, Any]:
    """What is worn or held: JSON in a string, as the engine tells it, or an object."""
    values = json.loads(item) if isinstance(item, str) else item
    return {name: _plain(str(value)) if name == "type" else int(value) for name, value in values.items()}


def _plain(name: str) -> str:
    return name[len("minecraft:") :] if name.startswith("minecraft:") else name
