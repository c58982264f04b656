"""Blocks: names, hardness, colours and procedurally made textures.

Hardness is vanilla 1.16's (seconds-like unit, see `mining`); the textures are our own.
"""

from __future__ import annotations

import numpy as np

AIR, GRASS, DIRT, STONE, BEDROCK, LOG, LEAVES, BARRIER = range(8)
NAMES = ("air", "grass_block", "dirt", "stone", "bedrock", "oak_log", "oak_leaves", "barrier")
NUM_BLOCKS = len(NAMES)

# Negative: unbreakable. The barrier is the invisible wall around the world.
HARDNESS = np.array([0.0, 0.6, 0.5, 1.5, -1.0, 2.0, 0.2, -1.0], np.float32)
HARVESTED_BY_HAND = np.array([False, True, True, False, False, True, True, False])
# Item that goes to the inventory when the block is broken by hand; AIR: none.
DROP = np.array([AIR, DIRT, DIRT, AIR, AIR, LOG, AIR, AIR])

TEXTURE_SIZE = 16
TOP, SIDE, BOTTOM = range(3)

_COLOUR = {
    GRASS: {TOP: (104, 160, 62), SIDE: (121, 85, 58), BOTTOM: (121, 85, 58)},
    DIRT: {TOP: (121, 85, 58)},
    STONE: {TOP: (125, 125, 125)},
    BEDROCK: {TOP: (70, 70, 70)},
    LOG: {TOP: (176, 141, 87), SIDE: (96, 74, 44), BOTTOM: (176, 141, 87)},
    LEAVES: {TOP: (52, 110, 34)},
}


def textures() -> np.ndarray:
    """Texture atlas, float32 [block, face (top, side, bottom), 16, 16, 3], 0..255. Row 0 is the upper edge."""
    rng = np.random.default_rng(7)
    atlas = np.zeros((NUM_BLOCKS, 3, TEXTURE_SIZE, TEXTURE_SIZE, 3), np.float32)
    for block, faces in _COLOUR.items():
        for face in (TOP, SIDE, BOTTOM):
            colour = np.array(faces.get(face, faces[TOP]), np.float32)
            contrast = 0.30 if block == LEAVES else 0.12
            noise = 1.0 + contrast * rng.uniform(-1, 1, (TEXTURE_SIZE, TEXTURE_SIZE, 1))
            atlas[block, face] = colour * noise
    # A strip of grass hangs over the side of its block; bark has vertical furrows; a cut log has rings.
    atlas[GRASS, SIDE, :3] = atlas[GRASS, TOP, :3]
    atlas[LOG, SIDE, :, ::4] *= 0.65
    atlas[LOG, SIDE, :, 1::4] *= 0.85
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] - (TEXTURE_SIZE - 1) / 2
    rings = (np.maximum(abs(x), abs(y)).astype(int) % 3 == 0)[..., None]
    for face in (TOP, BOTTOM):
        atlas[LOG, face] *= np.where(rings, 0.75, 1.0)
    return np.clip(atlas, 0, 255)
