"""How many environments of a run may start at the same time on one host, over all its processes."""

from __future__ import annotations

import errno
import hashlib
import os
import socket


class StartPermit:
    """The right to start one environment; whoever dies with it gives it back."""

    def __init__(self, holder: socket.socket | None) -> None:
        self._holder = holder

    def give_back(self) -> None:
        """Harmless if called twice."""
        if self._holder is not None:
            self._holder.close()


class StartLimit:
    """Permits to start environments, shared by all that give the same session on the same host.

    A permit is a name that one socket of the host at most can have, without a file: the kernel frees it with its
    holder, whichever way that one ends, and nothing is left behind.

    Args:
      session_id: life of the trainer.
      most: permits that are out at the same time; 0 is without limit.
    """

    def __init__(self, session_id: str, most: int) -> None:
        session = hashlib.sha256(session_id.encode()).hexdigest()[:32]
        self._names = [f"\0minestudio_jax/{os.getuid()}/{session}/start/{place}" for place in range(most)]

    def acquire(self) -> StartPermit | None:
        """A permit, or None if all are out. Does not wait."""
        if not self._names:
            return StartPermit(None)
        for name in self._names:
            holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                holder.bind(name)
            except OSError as error:
                holder.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return StartPermit(holder)
        return None
