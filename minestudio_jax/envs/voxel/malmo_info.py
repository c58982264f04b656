"""The embedded world's state as the info JSON of MineRL 1.0's and MineStudio's Minecraft."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.tasks import SLOTS
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items, physics, terrain
from minestudio_jax.envs.voxel.render import brightness
from minestudio_jax.envs.voxel.state import State, WorldSettings
from minestudio_jax.envs.voxel.statistics import NAMES

_CLEAR = (b.AIR, b.BARRIER, b.WATER)  # what does not hide the sky
_LIGHT = 15  # of full daylight
# Vanilla's temperature and rainfall.
_CLIMATE = {
    "plains": (0.8, 0.4),
    "forest": (0.7, 0.8),
    "hills": (0.2, 0.3),
    "mountain": (0.2, 0.3),
    "desert": (2.0, 0.0),
    "beach": (0.8, 0.4),
}


def facts(state: State) -> dict[str, Any]:
    """What an info is made of: a small part of the state, to be fetched at once."""
    eye = jnp.floor(physics.eye(state.player)).astype(jnp.int32)
    column = state.blocks[eye[0], :, eye[2]]
    hides = (column[:, None] != jnp.array(_CLEAR)).all(axis=1) & (jnp.arange(column.shape[0]) > eye[1])
    return {
        "statistics": state.statistics,
        "vitals": state.vitals,
        "position": state.player.position,
        "yaw": state.player.yaw,
        "pitch": state.player.pitch,
        "inventory": state.inventory,
        "can_see_sky": ~hides.any(),
        "brightness": brightness(state.time),
    }


def info_of(told: Mapping[str, Any], settings: WorldSettings) -> dict[str, Any]:
    """The info without voxels.

    Args:
      told: `facts`, as NumPy arrays.
      settings: of the world.
    """
    vitals, inventory = told["vitals"], told["inventory"]
    temperature, downfall = _CLIMATE[settings.biome]
    x, y, z = (float(value) for value in told["position"])
    return {
        **_counts(told["statistics"]),
        "life_stats": {
            "life": float(vitals.health),
            "score": 0,
            "food": int(vitals.food),
            "saturation": float(vitals.saturation),
            "xp": 0,
            "is_alive": bool(vitals.health > 0),
            "air": int(vitals.air),
            "name": "MineRLAgent0",
        },
        "health": float(vitals.health),
        "food_level": int(vitals.food),
        "xpos": x,
        "ypos": y,
        "zpos": z,
        "pitch": float(told["pitch"]),
        "yaw": float(told["yaw"]),
        "biome_name": terrain.minecraft_name(settings.biome),
        "biome_temperature": temperature,
        "biome_downfall": downfall,
        "sea_level": settings.ground + terrain.BIOMES[settings.biome].water,
        "light_level": round(_LIGHT * float(told["brightness"])) if told["can_see_sky"] else 0,
        "is_raining": False,
        "can_see_sky": bool(told["can_see_sky"]),
        # MineRL counts "air" as empty slots; MineStudio wants every slot by its number.
        "inventory": [
            {"slot_id": slot, "type": items.NAMES[inventory.item[slot]], "quantity": int(inventory.count[slot])}
            for slot in range(SLOTS)
        ],
        "equipped_items": _equipped(inventory),
        "isGuiOpen": False,
    }


def voxels(blocks: np.ndarray, position: np.ndarray, box: Sequence[int]) -> list[dict[str, Any]]:
    """The blocks around the player that are not air, each with its place relative to the cell of his feet.

    Args:
      blocks: uint8 [x, y, z].
      position: float32 [3], the player's.
      box: x0, x1, y0, y1, z0, z1, first and last cell along each axis.
    """
    feet = np.floor(position + np.array([0.0, 1e-3, 0.0])).astype(int)
    low, high = feet + np.array(box[::2]), feet + np.array(box[1::2])
    low, high = np.clip(low, 0, blocks.shape), np.clip(high + 1, 0, blocks.shape)
    around = blocks[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
    places = np.argwhere(around != b.AIR)
    return [
        {"x": int(x), "y": int(y), "z": int(z), "type": b.NAMES[around[at]]}
        for at, (x, y, z) in zip(map(tuple, places), places + low - feet, strict=True)
    ]


def _counts(statistics: Any) -> dict[str, dict[str, int]]:
    """Group -> name -> count, without zeros and empty groups."""
    groups = {}
    for event, names in NAMES.items():
        counts = getattr(statistics, event)
        if counts.any():
            groups[event] = {names[number]: int(counts[number]) for number in np.flatnonzero(counts)}
    return groups


def _equipped(inventory: inv.Inventory) -> dict[str, str]:
    """Every slot of the body with a JSON text of its own, as Minecraft tells it."""
    held = int(inventory.item[inventory.selected])
    worn = {"type": items.NAMES[held], "maxDamage": int(items.DURABILITY[held])}
    nothing = json.dumps({"type": "air", "maxDamage": 0, "damage": 0})
    return {
        "mainhand": json.dumps({**worn, "damage": int(inventory.wear[inventory.selected])}),
        **dict.fromkeys(("offhand", "head", "chest", "legs", "feet"), nothing),
    }
