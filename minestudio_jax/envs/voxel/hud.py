"""What lies over the picture: crosshair, hotbar, hearts and hunger, and the item in the hand.

Places and sizes are those of Minecraft's at 640x360, squeezed with the picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items
from minestudio_jax.envs.voxel.state import State

_FRAME_WIDTH, _FRAME_HEIGHT = 640, 360
_SLOT, _BAR_HEIGHT = 20, 22  # pixels of the frame
_BAR_WIDTH = 9 * _SLOT + 2
_ROW_TOP, _ROW_BOTTOM = 39, 30  # of hearts and drumsticks, from the lower edge
_ROW_WIDTH = 81
_HEART, _DRUMSTICK = np.array([220.0, 20.0, 20.0]), np.array([180.0, 110.0, 50.0])
_EMPTY, _SELECTED = np.array([40.0, 40.0, 40.0]), np.array([255.0, 255.0, 255.0])
_SLOT_COLOUR, _FRAME_COLOUR = np.array([70.0, 70.0, 70.0]), np.array([120.0, 120.0, 120.0])


def crosshair(height: int, width: int) -> np.ndarray:
    """bool [height, width], a small plus in the middle."""
    y, x = np.mgrid[:height, :width]
    y, x = abs(y - (height - 1) / 2), abs(x - (width - 1) / 2)
    arm, half = max(height, width) / 40, max(height, width) / 120 + 0.5
    return ((y < half) & (x < arm)) | ((x < half) & (y < arm))


def draw(colour: jax.Array, state: State) -> jax.Array:
    """The picture, float32 [H, W, 3], with everything but the crosshair over it."""
    height, width = colour.shape[:2]
    y, x = np.mgrid[:height, :width]
    # Of every pixel: the place in Minecraft's frame, counted from the middle and from the lower edge.
    across = (x + 0.5) / width * _FRAME_WIDTH - _FRAME_WIDTH / 2
    above = _FRAME_HEIGHT - (y + 0.5) / height * _FRAME_HEIGHT
    colour = _hand(colour, state, across, above)
    colour = _hotbar(colour, state, across, above)
    for left, value, full in (
        (-_BAR_WIDTH / 2, state.vitals.health / 20.0, _HEART),
        (_BAR_WIDTH / 2 - _ROW_WIDTH, state.vitals.food / 20.0, _DRUMSTICK),
    ):
        row = (above < _ROW_TOP) & (above >= _ROW_BOTTOM) & (across >= left) & (across < left + _ROW_WIDTH)
        share = (across - left) / _ROW_WIDTH
        # Health empties from the right, hunger from the left.
        filled = share < value if left < 0 else 1 - share < value
        colour = jnp.where(row[..., None], jnp.where(filled[..., None], full, _EMPTY), colour)
    return colour


def _hotbar(colour: jax.Array, state: State, across: np.ndarray, above: np.ndarray) -> jax.Array:
    inside = (np.abs(across) < _BAR_WIDTH / 2) & (above < _BAR_HEIGHT)
    slot = np.clip((across + _BAR_WIDTH / 2 - 1) // _SLOT, 0, inv.HOTBAR - 1).astype(int)
    in_slot = (across + _BAR_WIDTH / 2 - 1) % _SLOT
    picture = (in_slot >= 4) & (in_slot < 16) & (above >= 4) & (above < 18)
    item = state.inventory.item[: inv.HOTBAR]
    empty = (state.inventory.count[: inv.HOTBAR] == 0)[:, None]
    slots = jnp.where(empty, _SLOT_COLOUR, jnp.asarray(items.COLOUR)[item])
    frame = jnp.where((jnp.arange(inv.HOTBAR) == state.inventory.selected)[:, None], _SELECTED, _FRAME_COLOUR)
    drawn = jnp.where(picture[..., None], slots[slot], frame[slot])
    return jnp.where(inside[..., None], drawn, colour)


def _hand(colour: jax.Array, state: State, across: np.ndarray, above: np.ndarray) -> jax.Array:
    """The item in the hand as a slanting block at the lower right; an empty hand is not shown."""
    share_x, share_y = across / (_FRAME_WIDTH / 2), above / _FRAME_HEIGHT
    slant = share_x - 0.25 * share_y
    front = (slant > 0.5) & (slant < 0.78) & (share_y < 0.34)
    side = (slant >= 0.78) & (slant < 0.9) & (share_y < 0.38)
    held = state.inventory.held
    own = jnp.asarray(items.COLOUR)[held] * jnp.where(side, 0.6, 0.85)[..., None]
    shown = (front | side) & (held != items.NONE)
    return jnp.where(shown[..., None], own, colour)
