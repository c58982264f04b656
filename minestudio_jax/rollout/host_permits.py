"""A number of places on one host, shared by several processes there: to start environments, to use a CPU."""

from __future__ import annotations

import errno
import hashlib
import socket


class Permit:
    """One place; whoever dies with it gives it back.

    Attributes:
      place: which one it is.
    """

    def __init__(self, place: int, holder: socket.socket | None) -> None:
        self.place = place
        self._holder = holder

    def give_back(self) -> None:
        """Harmless if called twice."""
        if self._holder is not None:
            self._holder.close()


class HostPermits:
    """Permits shared by all processes that name the same group and purpose on the same host, whoever's they are.

    A permit is a name that one socket of the host at most can have, without a file: the kernel frees it with its
    holder, whichever way that one ends, and nothing is left behind.

    Args:
      group: for example a life of the trainer.
      purpose: what the permits are for.
    """

    def __init__(self, group: str, purpose: str) -> None:
        name = hashlib.sha256(group.encode()).hexdigest()[:32]
        self._prefix = f"\0minestudio_jax/{name}/{purpose}/"

    def acquire(self, place: int) -> Permit | None:
        """The permit for one place, or None if it is taken. Does not wait."""
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"{self._prefix}{place}")
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return Permit(place, holder)
