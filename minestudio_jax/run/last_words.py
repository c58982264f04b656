"""What a process says when JAX ends it, because the first host with JAX's coordinator is gone."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

_installed: list[Any] = []  # C keeps no reference


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
