"""A rollout worker keeps to as many CPUs as it was given."""

from __future__ import annotations

import logging
import math
import os

from minestudio_jax.rollout.host_permits import HostPermits, Permit

log = logging.getLogger(__name__)


class CpuPinning:
    """Pins the calling thread, and those it starts from now on, to CPUs that no other rollout worker of the host has.

    XLA makes as many threads as the thread that first uses it may run on CPUs. Threads of several workers that compete
    for the same CPU wait for each other inside every operation.

    Where fewer CPUs are free than `num_cpus`, or `num_cpus` is all there are, nothing is pinned.

    Args:
      num_cpus: rollout.num_cpus_per_worker; a part of a CPU counts as one.
      group: workers of one group share the CPUs out among them; other groups are not heeded.
    Attributes:
      before: the CPUs that the thread could run on before, for processes that are not to be pinned.
      pinned: those that it may run on now.
    """

    def __init__(self, num_cpus: float, group: str = "rollout workers") -> None:
        self.before = frozenset(os.sched_getaffinity(0))
        self.pinned = self.before
        self._permits: list[Permit] = []
        wanted = math.ceil(num_cpus)
        if not 0 < wanted < len(self.before):
            return
        places = HostPermits(group, "cpu")
        for cpu in sorted(self.before):
            permit = places.acquire(cpu)
            if permit is not None:
                self._permits.append(permit)
            if len(self._permits) == wanted:
                self.pinned = frozenset(permit.place for permit in self._permits)
                os.sched_setaffinity(0, self.pinned)
                log.info("pinned to CPUs %s", sorted(self.pinned))
                return
        self.close()
        log.info("not pinned: %d CPUs are asked for, %d are free on this host", wanted, len(self.before))

    def close(self) -> None:
        """Others may have the CPUs; harmless if called twice."""
        for permit in self._permits:
            permit.give_back()
        self._permits = []
