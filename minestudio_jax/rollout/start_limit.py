"""How many environments of a run may start at the same time on one host, over all its processes."""

from __future__ import annotations

from minestudio_jax.rollout.host_permits import HostPermits, Permit


class StartLimit:
    """Permits to start environments, shared by all that give the same session on the same host.

    Args:
      session_id: life of the trainer.
      most: permits that are out at the same time; 0 is without limit.
    """

    def __init__(self, session_id: str, most: int) -> None:
        self._permits, self._most = HostPermits(session_id, "start"), most

    def acquire(self) -> Permit | None:
        """A permit, or None if all are out. Does not wait."""
        if not self._most:
            return Permit(0, None)
        for place in range(self._most):
            permit = self._permits.acquire(place)
            if permit is not None:
                return permit
        return None
