"""A rollout worker keeps to as many CPUs as it was given."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from pathlib import Path

import jax

from minestudio_jax.rollout.host_permits import HostPermits, Permit

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

log = logging.getLogger(__name__)


class CpuPinning:
    """Pins the calling thread, and those it starts from now on, to CPUs that no other rollout worker of the host has.

    XLA makes as many threads as the thread that first uses it may run on CPUs. Threads of several workers that compete
    for the same CPU wait for each other inside every operation.

    Where fewer CPUs are free than `num_cpus`, or `num_cpus` is all there are, nothing is pinned. Neither is it where a
    container may run on all CPUs of a host for a part of the time: others there are not seen and would choose the same.
    XLA makes no more threads than `num_cpus` then either.

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
        quota = cpu_quota()
        if quota < len(self.before):
            log.info(
                "not pinned: others use the %d CPUs too, of which there is the time of %g", len(self.before), quota
            )
            _start_jax(wanted)
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
        _start_jax(wanted)

    def close(self) -> None:
        """Others may have the CPUs; harmless if called twice."""
        for permit in self._permits:
            permit.give_back()
        self._permits = []


def cpu_quota() -> float:
    """As many CPUs' time as the control groups of this process may use; infinite without a limit."""
    least = math.inf
    with contextlib.suppress(OSError):  # there are none
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = _CGROUPS / "cpu" if controllers else _CGROUPS
            folder = root / path.strip("/")
            # A container may see only the end of the path, at the root.
            for group in (folder, *folder.parents):
                least = min(least, _quota_of(group))
                if group == root:
                    break
    return least


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except OSError:  # nothing of the kind is kept there
        return math.inf
    return math.inf if quota == "max" or quota.startswith("-") else int(quota) / int(period)


def _start_jax(num_threads: int) -> None:
    """Has XLA make that many threads, unless it has made them already or the user says how many."""
    if "NPROC" in os.environ:
        return
    os.environ["NPROC"] = str(num_threads)  # XLA reads it when it starts; nobody is to inherit it
    try:
        with contextlib.suppress(RuntimeError):  # whoever uses JAX next is told
            jax.local_devices()
    finally:
        del os.environ["NPROC"]
