"""Notices that Ray is gone from this machine. Ray itself goes on for minutes, or ends this process without a word."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

import ray

_LOOK_S = 0.5  # how often the thread looks whether it should end
_CONNECT_DEADLINE_S = 5.0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid; see unix(7)

log = logging.getLogger(__name__)


class RayWatch:
    """Watches the raylet, the process by which Ray is on this machine; without it nothing of Ray works any more.

    Args:
      on_loss: called once, from a thread, with a sentence that says what is gone.
    """

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        self._on_loss = on_loss
        self._gone, self._closed = threading.Event(), threading.Event()
        self._pid = _raylet_pid()
        self._thread = threading.Thread(target=self._run, name="ray-watch", daemon=True)
        self._thread.start()

    def is_gone(self, timeout_s: float) -> bool:
        """Whether Ray is gone; the news of it may be `timeout_s` behind what came of it."""
        return self._gone.wait(timeout_s)

    def close(self) -> None:
        """Ends the watch, before Ray is stopped on purpose."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            raylet = os.pidfd_open(self._pid)
        except OSError as error:  # it is in another container, say
            log.info("the raylet, process %d, is not watched: %s", self._pid, error)
            return
        try:
            ended = select.poll()  # select() takes no number above 1023
            ended.register(raylet, select.POLLIN)
            while not self._closed.is_set() and not self._gone.is_set():
                if ended.poll(1000 * _LOOK_S):
                    self._gone.set()
        finally:
            os.close(raylet)
        if self._gone.is_set():
            self._on_loss(
                f"Ray is gone from this machine: its raylet, process {self._pid}, has ended. raylet.out and raylet.err "
                "among Ray's logs may say why, or the kernel's log, if memory ran out"
            )


def _raylet_pid() -> int:
    """Of this machine's raylet; 0 if it cannot be seen from here."""
    here = ray.get_runtime_context().get_node_id()
    path = next((node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == here), "")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_CONNECT_DEADLINE_S)
            connection.connect(path)
            pid: int
            pid, _, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
    except OSError as error:
        log.info("the raylet does not answer at %r: %s", path, error)
        return 0
    return pid
