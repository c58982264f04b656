"""SIGINT and SIGTERM as a request to stop in good order."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

# Who signals a process and its group, as timeout(1) does, or a terminal and a wrapper do, means one stop.
_ONE_STOP_S = 1.0


class StopSignal:
    """`event` is set by the first signal or request to stop, which `name` tells.

    Another SIGINT, more than a second after the first, interrupts at once: KeyboardInterrupt in the main thread.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.name = ""
        self._interrupted_at: float | None = None  # seconds, monotonic

    def install(self) -> None:
        """Takes over both signals; call it again after a library has taken them.

        Signals come to a process's main thread. In one of Ray's processes that is Ray's, which has its own ways.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def request(self, name: str) -> None:
        """Asks for the orderly stop, as a signal does; `name` says who did."""
        self.name = self.name or name
        self.event.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif now - self._interrupted_at > _ONE_STOP_S:
                raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
