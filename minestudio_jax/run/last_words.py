"""What a process says when something ends it that asks nobody: JAX, Ray, the kernel."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minestudio_jax.run.witness import Witness

_installed: list[Any] = []  # C keeps no reference
_witness: Witness | None = None


def before_abort(speak: Callable[[], None]) -> None:
    """Has `speak` called when this process is aborted from native code; it should end the process.

    JAX aborts a process whose coordinator is gone, within milliseconds and from a thread of its own: the exit code and
    a stack of native functions are all that would be left. Python's own signal handlers run too late.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        del number
        speak()

    _installed.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))


def if_silent(sentence: str, log: Path) -> None:
    """Has a sentence said if this process ends before `said` is called; the next call's takes its place.

    Ray ends a process that reads from its object store when Ray is gone, by `_Exit(1)`, and the kernel one that takes
    too much memory: nothing in the process itself can speak then.

    Args:
      sentence: said on stderr and in the log.
      log: the same file in every call.
    """
    global _witness
    if _witness is None:
        _witness = Witness(sentence, str(log))
    else:
        _witness.expect(sentence)


def said() -> None:
    """All that was to be said has been said: this process may end."""
    global _witness
    if _witness is not None:
        _witness.close()
        _witness = None
