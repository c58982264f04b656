"""Host memory that batches are assembled in, again and again."""

from __future__ import annotations

import collections
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

_THREADS = min(4, os.cpu_count() or 1)
_WORTH_THREADS = 4 * 2**20  # bytes: below, to wake a thread takes longer than it saves


class StagingMemory:
    """Gives arrays whose memory is used again as soon as nobody refers to the array any more.

    Fresh memory costs a page fault for every 4 KiB, which takes longer than filling it. Who refers to an array may be
    JAX: on a CPU the device's array is the very memory, on an accelerator a transfer may be under way.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = collections.defaultdict(list)
        self._threads = ThreadPoolExecutor(_THREADS, "staging")  # starts none before there is work

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

    def stacked(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The rows, all [...] of one dtype, one behind the other: [len(rows), ...].

        One core does not copy as fast as memory can: of many bytes several threads copy a part each.
        """
        out = self.empty((len(rows), *rows[0].shape), rows[0].dtype)
        if out.nbytes < _WORTH_THREADS:
            return np.stack(rows, out=out)
        step = -(-len(rows) // _THREADS)
        begins = range(0, len(rows), step)
        list(self._threads.map(lambda at: np.stack(rows[at : at + step], out=out[at : at + step]), begins))
        return out
