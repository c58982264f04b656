"""Writing an image as a PNG file, without a library for it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes an image; format: RFC 2083, without filters.

    Args:
      path: of the file.
      image: uint8 [H, W, 3], RGB.
    Raises:
      OSError: the file cannot be written.
    """
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)  # filter 0 for each row
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
