"""Host memory that batches are assembled in, again and again."""

from __future__ import annotations

import collections
import math
import mmap
import weakref

import numpy as np
import numpy.typing as npt


class StagingMemory:
    """Gives arrays whose memory is used again as soon as nobody refers to the array any more.

    Fresh memory costs a page fault for every 4 KiB, which takes longer than filling it. Who refers to an array may be
    JAX: on a CPU the device's array is the very memory, on an accelerator a transfer may be under way.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = collections.defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """An array of that shape with anything in it.

        It begins a page, so that JAX on a CPU takes it as it is, without a copy.
        """
        num_bytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        free = self._free[num_bytes]
        block = free.pop() if free else mmap.mmap(-1, num_bytes)
        # NumPy lets a slice refer to what the array is a view of, if that is an array, else to the array itself. So the
        # block is none: the array lives as long as any part of it.
        array: np.ndarray = np.ndarray(shape, dtype, block)
        weakref.finalize(array, free.append, block)
        return array
