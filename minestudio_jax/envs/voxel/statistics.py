"""What is counted in an episode, under the names of Minecraft's statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.env import REWARD_PREFIX
from minestudio_jax.envs.voxel import blocks, items, mobs
from minestudio_jax.envs.voxel.state import Statistics

# The first are Minecraft's; the last three are ours, for tasks about places.
CUSTOM = (
    "damage_dealt",
    "damage_taken",
    "deaths",
    "jump",
    "mob_kills",
    "climb_one_block",
    "approach_one_block",
    "reach_goal",
)

# Event -> names of what is counted in it, in the order of the arrays.
NAMES: dict[str, tuple[str, ...]] = {
    "mine_block": blocks.NAMES,
    "pickup": items.NAMES,
    "drop": items.NAMES,
    "craft_item": items.NAMES,
    "use_item": items.NAMES,
    "break_item": items.NAMES,
    "kill_entity": mobs.NAMES,
    "custom": CUSTOM,
}


def nothing_yet() -> Statistics:
    """All counts 0."""
    return Statistics(**{event: jnp.zeros(len(names), jnp.int32) for event, names in NAMES.items()})


def counted(statistics: Statistics, event: str, index: jax.Array | int, amount: jax.Array | int) -> Statistics:
    """With `amount` more of the thing at `index` of the event."""
    counts = getattr(statistics, event)
    # A sum over a comparison instead of a scatter, which costs more for so few.
    more = jnp.where(jnp.arange(counts.shape[0]) == index, amount, 0).astype(jnp.int32)
    return dataclasses.replace(statistics, **{event: counts + more})


def as_dict(info: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One world's `Timestep.info` as Minecraft's: event -> name -> count without the zeros, and the numbers beside."""
    result: dict[str, Any] = {}
    for event, names in NAMES.items():
        counts = np.asarray(info[event])
        result[event] = {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}
    result.update((name, float(total)) for name, total in info.items() if name.startswith(REWARD_PREFIX))
    if "success" in info:
        result["success"] = bool(info["success"])
    result["health"], result["food_level"] = float(info["health"]), int(info["food"])
    return result
