from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import uuid

import pytest

from minestudio_jax.rollout import cpu_pinning
from minestudio_jax.rollout.cpu_pinning import CpuPinning, cpu_quota
from minestudio_jax.rollout.host_permits import HostPermits

CPUS = frozenset(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU only")


@pytest.fixture
def session():
    return uuid.uuid4().hex


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Makes control groups with files of that content, to which this process belongs as it says."""
    monkeypatch.setattr(cpu_pinning, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu_pinning, "_MEMBERSHIP", tmp_path / "membership")

    def make(membership, files):
        (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n")

    return make


@pytest.fixture(autouse=True)
def _affinity(control_groups, monkeypatch):
    """The CPUs as they were before, no limit of their time, whatever this machine has, and JAX is left as it is."""
    monkeypatch.setattr(cpu_pinning, "_start_jax", lambda num_threads: None)
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


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/kubepods/pod1/c1", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "50000 100000"}, 0.5),
        (
            "4:memory:/a\n3:cpu,cpuacct:/a\n0::/",
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("3:cpu:/a\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:cpuset:/\n0::/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_the_time_that_control_groups_leave(control_groups, membership, files, cpus):
    control_groups(membership, files)
    assert cpu_quota() == cpus


def test_without_control_groups_there_is_no_limit():
    assert cpu_quota() == math.inf


@several
def test_where_others_use_the_cpus_too_nothing_is_pinned(session, control_groups):
    control_groups("0::/", {"cpu.max": f"{100_000 * len(CPUS) - 1} 100000"})
    assert CpuPinning(1, session).pinned == CPUS
    assert frozenset(os.sched_getaffinity(0)) == CPUS
    control_groups("0::/", {"cpu.max": f"{100_000 * len(CPUS)} 100000"})
    pinning = CpuPinning(1, session)
    assert len(pinning.pinned) == 1
    pinning.close()


_XLA = """
import os, sys
from minestudio_jax.rollout import cpu_pinning
if sys.argv[2] == "limited":
    cpu_pinning.cpu_quota = lambda: 0.5
pinning = cpu_pinning.CpuPinning(1, sys.argv[1])
assert "NPROC" not in os.environ
import jax
jax.jit(lambda x: x @ x)(jax.numpy.ones((300, 300))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
print(sum("XLAEigen" in name for name in names))
"""


@several
@pytest.mark.parametrize("cpu_time", ["limited", "unlimited"])
def test_xla_makes_as_many_threads_as_there_are_cpus_for_it(session, cpu_time):
    command = [sys.executable, "-c", _XLA, session, cpu_time]
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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_permit_of_another_user_counts(session):
    permit = HostPermits(session, "cpu").acquire(0)
    code = (
        "import sys, os; from minestudio_jax.rollout.host_permits import HostPermits\n"
        "os.setuid(65534); print(HostPermits(sys.argv[1], 'cpu').acquire(0))"
    )
    other = subprocess.run([sys.executable, "-c", code, session], capture_output=True, text=True, check=True)
    assert other.stdout == "None\n"
    permit.give_back()
