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
    rows, above, below, down, up, left, right, from_left, from_right = _plan(*image.shape[:2], height, width)
    # Only rows that are needed, and columns first: the rows are summed with the columns' 11 bits still in them.
    used = image.take(rows, axis=0)
    across = used.take(left, axis=1).astype(np.int32)
    across *= from_left
    other = used.take(right, axis=1).astype(np.int32)
    other *= from_right
    across += other
    across >>= 4
    mixed = across.take(above, axis=0)
    mixed *= down
    mixed >>= 16
    other = across.take(below, axis=0)
    other *= up
    other >>= 16
    mixed += other
    mixed += 2
    mixed >>= 2
    return mixed.astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _plan(old_height: int, old_width: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    """What is the same for every image of a size.

    Returns:
      rows of the old image that are needed; of each new row the upper and the lower one among those and their weights
      [height, 1, 1]; of each new column the left and the right one and their weights [width, 1].
    """
    top, bottom, down, up = _neighbours(old_height, height)
    left, right, from_left, from_right = _neighbours(old_width, width)
    # At the left and right edge OpenCV takes one pixel whole, at the upper and lower edge the same row twice.
    from_left = np.where(left == right, _ONE, from_left).astype(np.int32)
    from_right = np.where(left == right, 0, from_right).astype(np.int32)
    rows, row_of = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    above, below = row_of[:height], row_of[height:]
    down, up = down[:, None, None], up[:, None, None]
    return rows, above, below, down, up, left, right, from_left[:, None], from_right[:, None]


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every new pixel along an axis: its two old neighbours and their weights, 2048 in all. int [new_size] each."""
    at = ((np.arange(new_size) + 0.5) * (size / new_size) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    share = at - low
    weight_high = np.rint(share * _ONE).astype(np.int32)
    weight_low = np.rint((1.0 - share) * _ONE).astype(np.int32)
    return np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1), weight_low, weight_high
