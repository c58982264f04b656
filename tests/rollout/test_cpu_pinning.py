from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid

import pytest

from minestudio_jax.rollout.cpu_pinning import CpuPinning
from minestudio_jax.rollout.host_permits import HostPermits

CPUS = frozenset(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU only")


@pytest.fixture
def session():
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _affinity():
    yield
    os.sched_setaffinity(0, CPUS)


@several
def test_workers_of_a_host_get_cpus_of_their_own(session):
    pinnings = []

    def pin():
        pinnings.append((CpuPinning(1.0, session), os.sched_getaffinity(0)))

    for _ in range(len(CPUS) + 1):
        thread = threading.Thread(target=pin)
        thread.start()
        thread.join()
    *some, last = pinnings
    assert sorted(cpu for _, affinity in some for cpu in affinity) == sorted(CPUS)
    assert all(pinning.pinned == affinity and pinning.before == CPUS for pinning, affinity in some)
    assert last[1] == CPUS, "none was left"
    for pinning, _ in pinnings:
        pinning.close()
    again = CpuPinning(0.5, session)
    assert len(again.pinned) == 1
    again.close()


def test_a_worker_that_may_have_all_or_asks_for_none_is_not_pinned(session):
    for num_cpus in (0.0, float(len(CPUS)), len(CPUS) + 3.0):
        assert CpuPinning(num_cpus, session).pinned == CPUS
    assert frozenset(os.sched_getaffinity(0)) == CPUS


@several
def test_other_groups_do_not_count(session):
    one, other = CpuPinning(1, session), None
    os.sched_setaffinity(0, CPUS)
    other = CpuPinning(1, session + "other")
    assert one.pinned == other.pinned
    one.close()
    other.close()


_XLA = """
import os, sys
from minestudio_jax.rollout.cpu_pinning import CpuPinning
pinning = CpuPinning(1, sys.argv[1])
import jax
jax.jit(lambda x: x @ x)(jax.numpy.ones((300, 300))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
print(sum("XLAEigen" in name for name in names))
"""


@several
def test_xla_makes_as_many_threads_as_there_are_cpus_for_it(session):
    command = [sys.executable, "-c", _XLA, session]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert int(done.stdout) == 1


def test_a_permit_dies_with_its_holder(session):
    code = (
        "import sys, os, signal; from minestudio_jax.rollout.host_permits import HostPermits\n"
        "permit = HostPermits(sys.argv[1], 'start').acquire(0); print('held', flush=True); signal.pause()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, session], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert HostPermits(session, "start").acquire(0) is None
    for purpose, place in (("start", 1), ("cpu", 0)):
        other = HostPermits(session, purpose).acquire(place)
        assert other is not None
        other.give_back()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    permit = HostPermits(session, "start").acquire(0)
    assert permit is not None
    permit.give_back()
    permit.give_back()
