"""SIGINT and SIGTERM as a request to stop in good order."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignal:
    """`event` is set by the first signal or request to stop, which `name` tells; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.name = ""
        self._interrupted = False

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
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = number == signal.SIGINT
        self.request(signal.Signals(number).name)
