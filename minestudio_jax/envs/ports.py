"""TCP ports for Minecraft processes that no two of a host share.

Simulator side: the standard library only, Python 3.8 syntax. Linux.
"""

from __future__ import annotations

import errno
import socket

from minestudio_jax.envs.env import EnvironmentFailure

PORTS = range(12000, 28000)  # below those that the kernel gives to outgoing connections


class ClaimedPort:
    """A port that is free, and that no other process of this kind on the host takes until it is closed.

    A claim is a name that one socket of a network namespace at most can have: the kernel frees it with its holder,
    whichever way that one ends. Between the choice of a port and the moment Minecraft listens there it lasts a minute.

    Args:
      index: where the search begins, so that environments rarely try each other's.
    Attributes:
      number: of the port.
    Raises:
      EnvironmentFailure: there is none.
    """

    def __init__(self, index: int = 0) -> None:
        for offset in range(len(PORTS)):
            self.number = PORTS[(index + offset) % len(PORTS)]
            self._holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                self._holder.bind(f"\0minestudio_jax/port/{self.number}")
            except OSError as error:
                self._holder.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if _is_free(self.number):
                return
            self._holder.close()
        raise EnvironmentFailure(
            f"none of the TCP ports {PORTS.start} to {PORTS.stop - 1} is free: look with `ss -ltn` who listens there"
        )

    def close(self) -> None:
        """Harmless if called twice."""
        self._holder.close()


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: old connections are in nobody's way
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
