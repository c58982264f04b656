"""Items: tools, food, materials, and every block as an item. Numbers are vanilla 1.16's.

An item's id is its block's where it is one, so that an inventory, a drop and a block speak of the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minestudio_jax.envs.voxel import blocks as b


@dataclass(frozen=True)
class Item:
    """
    Attributes:
      name: Minecraft's, without the namespace.
      stack: greatest number in one slot.
      tool: class, as in `blocks`; 0 is none.
      tier: 1 wood and gold, 2 stone, 3 iron, 4 diamond; 0 for everything else.
      speed: multiplier on the speed of breaking what its class breaks.
      durability: uses until it breaks; 0 never.
      damage: of a full hit, half hearts.
      hits_per_s: attack speed.
      food: half drumsticks it fills; 0 cannot be eaten.
      saturation: it adds.
      colour: of its picture.
    """

    name: str
    stack: int = 64
    tool: int = 0
    tier: int = 0
    speed: float = 1.0
    durability: int = 0
    damage: float = 1.0
    hits_per_s: float = 4.0
    food: int = 0
    saturation: float = 0.0
    colour: tuple[int, int, int] = (200, 200, 200)


# name -> tier, speed, durability, damage of the sword, colour
_MATERIALS = {
    "wooden": (1, 2.0, 59, 4.0, (137, 103, 56)),
    "stone": (2, 4.0, 131, 5.0, (130, 130, 130)),
    "iron": (3, 6.0, 250, 6.0, (220, 220, 220)),
    "golden": (1, 12.0, 32, 4.0, (250, 214, 70)),
    "diamond": (4, 8.0, 1561, 7.0, (80, 220, 210)),
}
# damage, hits per second
_AXE = {"wooden": (7.0, 0.8), "stone": (9.0, 0.8), "iron": (9.0, 0.9), "golden": (7.0, 1.0), "diamond": (9.0, 1.0)}


def _tools() -> list[Item]:
    tools = []
    for material, (tier, speed, durability, sword, colour) in _MATERIALS.items():
        for kind, tool, damage, hits in (
            ("pickaxe", b.PICKAXE, sword - 2.0, 1.2),
            ("axe", b.AXE, *_AXE[material]),
            ("shovel", b.SHOVEL, sword - 1.5, 1.0),
            ("sword", b.SWORD, sword, 1.6),
        ):
            tools.append(Item(f"{material}_{kind}", 1, tool, tier, speed, durability, damage, hits, colour=colour))
    return tools


ITEMS = (
    *(Item(block.name, colour=block.top or block.colour) for block in b.BLOCKS),
    Item("stick", colour=(120, 90, 50)),
    Item("coal", colour=(40, 40, 40)),
    Item("iron_ingot", colour=(216, 216, 216)),
    Item("gold_ingot", colour=(250, 214, 70)),
    Item("diamond", colour=(95, 235, 225)),
    Item("redstone", colour=(200, 20, 20)),
    Item("lapis_lazuli", colour=(35, 70, 170)),
    Item("leather", colour=(150, 90, 50)),
    Item("beef", food=3, saturation=1.8, colour=(190, 60, 50)),
    Item("porkchop", food=3, saturation=1.8, colour=(240, 150, 140)),
    Item("mutton", food=2, saturation=1.2, colour=(200, 80, 70)),
    Item("cooked_beef", food=8, saturation=12.8, colour=(120, 70, 45)),
    Item("bread", food=5, saturation=6.0, colour=(190, 140, 60)),
    Item("apple", food=4, saturation=2.4, colour=(220, 40, 40)),
    Item("oak_sapling", colour=(60, 140, 40)),
    Item("flint", colour=(60, 60, 65)),
    Item("rotten_flesh", food=4, saturation=0.8, colour=(150, 100, 60)),
    *_tools(),
)

NUM_ITEMS = len(ITEMS)
NAMES = tuple(item.name for item in ITEMS)
ID = {name: number for number, name in enumerate(NAMES)}
NONE = b.AIR  # an empty slot, an empty hand

STACK = np.array([item.stack for item in ITEMS], np.int32)
TOOL = np.array([item.tool for item in ITEMS], np.int32)
TIER = np.array([item.tier for item in ITEMS], np.int32)
SPEED = np.array([item.speed for item in ITEMS], np.float32)
DURABILITY = np.array([item.durability for item in ITEMS], np.int32)
DAMAGE = np.array([item.damage for item in ITEMS], np.float32)
HITS_PER_S = np.array([item.hits_per_s for item in ITEMS], np.float32)
FOOD = np.array([item.food for item in ITEMS], np.int32)
SATURATION = np.array([item.saturation for item in ITEMS], np.float32)
COLOUR = np.array([item.colour for item in ITEMS], np.float32)

# Which block an item places; AIR where it is none that can be placed.
_UNPLACED = (b.AIR, b.BEDROCK, b.BARRIER, b.WATER)
PLACES = np.array([i if i < b.NUM_BLOCKS and i not in _UNPLACED else b.AIR for i in range(NUM_ITEMS)], np.int32)


def _loot() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    most_ways = 1 + max(len(block.rare) for block in b.BLOCKS)
    item, least, most = (np.zeros((b.NUM_BLOCKS, most_ways), np.int32) for _ in range(3))
    up_to = np.ones((b.NUM_BLOCKS, most_ways), np.float32)
    for number, block in enumerate(b.BLOCKS):
        chances = np.cumsum([chance for _, chance, _, _ in block.rare])
        usual = block.name if block.drop is None else block.drop
        for way, (name, low, high) in enumerate(
            [(name, low, high) for name, _, low, high in block.rare] + [(usual, *block.drop_count)]
        ):
            item[number, way] = ID[name] if name else NONE
            least[number, way], most[number, way] = low, high
        up_to[number, : len(chances)] = chances
    return item, least, most, up_to


# What breaking a block gives, in one of several ways: [block, way] the item, the least and greatest count, and below
# which number, drawn from 0..1, it is this way or one before it.
LOOT_ITEM, LOOT_LEAST, LOOT_MOST, LOOT_UP_TO = _loot()
