"""Blocks: what each is made of, how it breaks, what it drops and how it looks.

Names, hardness, tools and drops are vanilla 1.16's; the textures are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEXTURE_SIZE = 16
TOP, SIDE, BOTTOM = range(3)

PICKAXE, AXE, SHOVEL, SWORD = 1, 2, 3, 4  # tool classes; 0 is none

_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """
    Attributes:
      name: Minecraft's, without the namespace.
      hardness: as in Minecraft; negative is unbreakable.
      tool: class of the tool that breaks it faster; 0 is none.
      level: least tier of that tool without which it drops nothing: 1 wood, 2 stone, 3 iron; 0: a hand will do.
      drop: name of the item it drops; "" is none. None: the block itself.
      drop_count: least and greatest number of them.
      rare: what it drops instead: item, chance, least and greatest number.
      colour: of its texture, 0..255; of the top and the bottom where they differ from the sides.
      contrast: of the noise in the texture.
      specks: colour of the spots in it.
      solid: it stops bodies and rays; air and water do not.
    """

    name: str
    hardness: float
    tool: int = 0
    level: int = 0
    drop: str | None = None
    drop_count: tuple[int, int] = (1, 1)
    rare: tuple[tuple[str, float, int, int], ...] = ()
    colour: _Colour = (0, 0, 0)
    top: _Colour | None = None
    bottom: _Colour | None = None
    contrast: float = 0.12
    specks: _Colour | None = None
    solid: bool = True


_STONE = (125, 125, 125)
_DIRT = (121, 85, 58)

BLOCKS = (
    Block("air", 0.0, drop="", solid=False),
    Block("grass_block", 0.6, SHOVEL, drop="dirt", colour=_DIRT, top=(104, 160, 62), bottom=_DIRT),
    Block("dirt", 0.5, SHOVEL, colour=_DIRT),
    Block("stone", 1.5, PICKAXE, 1, drop="cobblestone", colour=_STONE),
    Block("bedrock", -1.0, drop="", colour=(70, 70, 70), contrast=0.4),
    Block("oak_log", 2.0, AXE, colour=(96, 74, 44), top=(176, 141, 87), bottom=(176, 141, 87)),
    Block("oak_leaves", 0.2, drop="", colour=(52, 110, 34), contrast=0.30,
          rare=(("oak_sapling", 0.05, 1, 1), ("stick", 0.02, 1, 2), ("apple", 0.005, 1, 1))),
    Block("barrier", -1.0, drop=""),
    Block("water", -1.0, drop="", colour=(47, 86, 205), contrast=0.06, solid=False),
    Block("sand", 0.5, SHOVEL, colour=(219, 207, 163), contrast=0.08),
    Block("sandstone", 0.8, PICKAXE, 1, colour=(214, 201, 152), contrast=0.05),
    Block("gravel", 0.6, SHOVEL, colour=(131, 127, 126), contrast=0.35, rare=(("flint", 0.1, 1, 1),)),
    Block("cobblestone", 2.0, PICKAXE, 1, colour=(118, 118, 118), contrast=0.35),
    Block("oak_planks", 2.0, AXE, colour=(162, 130, 78)),
    Block("crafting_table", 2.5, AXE, colour=(120, 85, 50), top=(150, 105, 60), bottom=(162, 130, 78), contrast=0.25),
    Block("furnace", 3.5, PICKAXE, 1, colour=(105, 105, 105), contrast=0.2, specks=(30, 30, 30)),
    Block("coal_ore", 3.0, PICKAXE, 1, drop="coal", colour=_STONE, specks=(40, 40, 40)),
    Block("iron_ore", 3.0, PICKAXE, 2, colour=_STONE, specks=(216, 175, 147)),
    Block("gold_ore", 3.0, PICKAXE, 3, colour=_STONE, specks=(250, 220, 75)),
    Block("redstone_ore", 3.0, PICKAXE, 3, drop="redstone", drop_count=(4, 5), colour=_STONE, specks=(200, 20, 20)),
    Block("lapis_ore", 3.0, PICKAXE, 2, drop="lapis_lazuli", drop_count=(4, 9), colour=_STONE, specks=(35, 70, 170)),
    Block("diamond_ore", 3.0, PICKAXE, 3, drop="diamond", colour=_STONE, specks=(95, 235, 225)),
    Block("obsidian", 50.0, PICKAXE, 4, colour=(20, 15, 30), contrast=0.3),
    Block("white_wool", 0.8, colour=(233, 236, 236), contrast=0.06),
    Block("pumpkin", 1.0, AXE, colour=(198, 117, 24), top=(190, 120, 30), bottom=(190, 120, 30), contrast=0.15),
)  # fmt: skip

NUM_BLOCKS = len(BLOCKS)
NAMES = tuple(block.name for block in BLOCKS)
ID = {name: number for number, name in enumerate(NAMES)}

AIR, GRASS, DIRT, STONE, BEDROCK = (ID[n] for n in ("air", "grass_block", "dirt", "stone", "bedrock"))
LOG, LEAVES, BARRIER, WATER = (ID[n] for n in ("oak_log", "oak_leaves", "barrier", "water"))
SAND, SANDSTONE, GRAVEL, COBBLESTONE = (ID[n] for n in ("sand", "sandstone", "gravel", "cobblestone"))
PLANKS, CRAFTING_TABLE, FURNACE = (ID[n] for n in ("oak_planks", "crafting_table", "furnace"))

HARDNESS = np.array([block.hardness for block in BLOCKS], np.float32)
TOOL = np.array([block.tool for block in BLOCKS], np.int32)
LEVEL = np.array([block.level for block in BLOCKS], np.int32)
SOLID = np.array([block.solid for block in BLOCKS])


def textures() -> np.ndarray:
    """Texture atlas, float32 [block, face (top, side, bottom), 16, 16, 3], 0..255. Row 0 is the upper edge."""
    rng = np.random.default_rng(7)
    atlas = np.zeros((NUM_BLOCKS, 3, TEXTURE_SIZE, TEXTURE_SIZE, 3), np.float32)
    for number, block in enumerate(BLOCKS):
        for face, colour in ((TOP, block.top), (SIDE, block.colour), (BOTTOM, block.bottom)):
            noise = 1.0 + block.contrast * rng.uniform(-1, 1, (TEXTURE_SIZE, TEXTURE_SIZE, 1))
            atlas[number, face] = np.array(block.colour if colour is None else colour, np.float32) * noise
            if block.specks is not None:
                spots = np.kron(rng.random((8, 8)) < 0.22, np.ones((2, 2)))[..., None]
                atlas[number, face] = np.where(spots, np.array(block.specks, np.float32) * noise, atlas[number, face])
    # A strip of grass hangs over the side of its block; bark has vertical furrows; a cut log has rings.
    atlas[GRASS, SIDE, :3] = atlas[GRASS, TOP, :3]
    atlas[LOG, SIDE, :, ::4] *= 0.65
    atlas[LOG, SIDE, :, 1::4] *= 0.85
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] - (TEXTURE_SIZE - 1) / 2
    rings = (np.maximum(abs(x), abs(y)).astype(int) % 3 == 0)[..., None]
    for face in (TOP, BOTTOM):
        atlas[LOG, face] *= np.where(rings, 0.75, 1.0)
    # Planks have seams, a furnace a mouth, a pumpkin ribs.
    atlas[PLANKS, :, ::4] *= 0.7
    atlas[CRAFTING_TABLE, TOP, ::5] *= 0.6
    atlas[CRAFTING_TABLE, TOP, :, ::5] *= 0.6
    atlas[FURNACE, SIDE, 8:14, 4:12] *= 0.3
    atlas[ID["pumpkin"], SIDE, :, ::4] *= 0.75
    return np.clip(atlas, 0, 255)
