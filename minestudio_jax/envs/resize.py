"""Resizing frames as VPT does: OpenCV's bilinear interpolation, bit for bit, without OpenCV.

Simulator side: NumPy only, Python 3.8 syntax. VPT's frames are MineRL's 640x360 squeezed to 128x128, whatever that does
to their aspect.
"""

from __future__ import annotations

import functools

import numpy as np

_BITS = 11  # of the fixed-point weights in OpenCV's imgproc/src/resize.cpp
_ONE = 1 << _BITS


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image at another size: INTER_LINEAR, no antialiasing.

    Args:
      image: uint8 [H, W, C].
      height, width: of the result, pixels.
    Returns:
      uint8 [height, width, C].
    """
    if image.shape[:2] == (height, width):
        return image
    top, bottom, down, up = _neighbours(image.shape[0], height)
    left, right, from_left, from_right = _neighbours(image.shape[1], width)
    # At the left and right edge OpenCV takes one pixel whole, at the upper and lower edge the same row twice.
    from_left = np.where(left == right, _ONE, from_left)
    from_right = np.where(left == right, 0, from_right)
    # Only rows that are needed, and columns first: the rows are summed with the columns' 11 bits still in them.
    rows, row_of = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    used = image[rows]
    across = used[:, left].astype(np.int32) * from_left[:, None] + used[:, right].astype(np.int32) * from_right[:, None]
    above, below = across[row_of[: len(top)]] >> 4, across[row_of[len(top) :]] >> 4
    mixed = ((above * down[:, None, None]) >> 16) + ((below * up[:, None, None]) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every new pixel along an axis: its two old neighbours and their weights, 2048 in all. int [new_size] each."""
    at = ((np.arange(new_size) + 0.5) * (size / new_size) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    share = at - low
    weight_high = np.rint(share * _ONE).astype(np.int32)
    weight_low = np.rint((1.0 - share) * _ONE).astype(np.int32)
    return np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1), weight_low, weight_high
