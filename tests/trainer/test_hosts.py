"""Learning on several hosts is learning on one: real processes, one device each, against one process with all devices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from minestudio_jax.utils import policy_store
from tests.rollout.processes import free_port
from tests.trainer import learning_host

pytestmark = pytest.mark.timeout(600)


def learn(out, num_processes, mesh="data:-1"):
    """Two devices in all; parameters of the newest version, metrics of three iterations, and finished iterations."""
    port = str(free_port())
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(2 // num_processes)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", learning_host.__name__, str(out), str(num_processes), str(index), port, mesh],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(num_processes)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num_processes, "\n".join(said)
    with np.load(out / "params.npz") as params:
        metrics, iteration = json.loads((out / "metrics.json").read_text())
        return list(params.values()), metrics, iteration


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    out = tmp_path_factory.mktemp("hosts")
    one, two = out / "1", out / "2"
    return {1: (one, learn(one, 1)), 2: (two, learn(two, 2, "fsdp:-1"))}


def assert_equal(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(one[1], other[1], strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert one[2] == other[2]


def test_two_processes_learn_what_one_with_all_devices_learns(learnt):
    """D-31, D-41: order of rows, joints of runs across hosts, shuffling, means over all devices; though each of the two
    has but half of the parameters, and writes these of every version."""
    (_, one), (out, two) = learnt[1], learnt[2]
    assert_equal(one, two)
    assert one[2] == 3
    for folder in (out / "published", out / "versions"):
        for version in policy_store.list_versions(folder):
            parts = sorted(path.name for path in policy_store.version_path(folder, version).glob("ocdbt.process_*"))
            assert parts == ["ocdbt.process_0", "ocdbt.process_1"]


def test_hosts_that_wrote_a_damaged_checkpoint_together_go_on_from_the_one_before(learnt, tmp_path):
    """D-42: the first host writes one manifest, of what all of them wrote, and tells the others which one is whole."""
    out = tmp_path / "out"
    shutil.copytree(learnt[2][0], out)
    checkpoint = out / "checkpoints" / "3"
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    others = max((name for name in files if "ocdbt.process_1/d/" in name), key=lambda name: files[name]["bytes"])
    with open(checkpoint / others, "r+b") as file:
        file.seek(files[others]["bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert learn(out, 2, "fsdp:-1")[2] == 5
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["2", "3.damaged", "4", "5"]


def test_a_run_of_two_processes_continues_in_one_and_the_other_way_round(learnt):
    """D-40: a checkpoint belongs to no number of hosts."""
    assert_equal(learn(learnt[2][0], 1), learn(learnt[1][0], 2))
