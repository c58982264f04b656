"""Checkpoints: everything comes back bit-equal, what is torn is passed over, what is old goes."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer import checkpoint, sharding
from minestudio_jax.trainer.checkpoint import Checkpointer, CheckpointFailure
from minestudio_jax.trainer.state import Counters, initial_state
from tests.trainer.fragments import SPEC, tiny_policy

CONFIG = TrainerConfig(save_interval=2, keep_interval=4, keep_last=2)


def make_state(policy, seed):
    """With numbers everywhere, also where a new one has zeros."""
    rng = np.random.default_rng(seed)

    def filled(x):
        x = np.asarray(x)
        return (
            rng.integers(0, 99, x.shape).astype(x.dtype)
            if x.dtype.kind in "iu"
            else rng.normal(size=x.shape).astype(x.dtype)
        )

    return jax.tree.map(filled, initial_state(policy, CONFIG, jax.random.key(seed)))


def abstract(policy):
    state = jax.eval_shape(lambda: initial_state(policy, CONFIG, jax.random.key(0)))
    return sharding.with_sharding(state, sharding.replicated(sharding.make_mesh(TrainerConfig())))


@pytest.fixture
def checkpointer(tmp_path):
    made = Checkpointer(tmp_path / "checkpoints", CONFIG)
    yield made
    made.close()


def saved(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def test_everything_comes_back_bit_equal(checkpointer, tmp_path):
    """D-40."""
    policy = tiny_policy()
    state, counters = make_state(policy, 1), Counters(7, 1234567, 999999, 8, 12.5)
    checkpointer.save(state, counters)
    checkpointer.flush()
    other = Checkpointer(tmp_path / "checkpoints", CONFIG)
    restored, restored_counters = other.restore(abstract(policy))
    other.close()
    assert restored_counters == counters
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, c in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert a.dtype == c.dtype
        np.testing.assert_array_equal(a, c)


def test_a_new_run_has_none(checkpointer):
    assert checkpointer.restore(abstract(tiny_policy())) is None


def test_the_state_may_be_donated_as_soon_as_save_returns(checkpointer):
    policy = tiny_policy()
    state = jax.device_put(make_state(policy, 1))
    expected = jax.device_get(state.params)
    checkpointer.save(state, Counters(iteration=2))
    jax.tree.map(lambda x: x.delete(), state)
    checkpointer.flush()
    restored, _ = checkpointer.restore(abstract(policy))
    jax.tree.map(np.testing.assert_array_equal, expected, jax.device_get(restored.params))


def test_the_newest_and_every_kept_interval_stay(checkpointer, tmp_path):
    """D-41."""
    state = make_state(tiny_policy(), 1)
    for iteration in range(2, 16, 2):
        assert checkpointer.due(iteration)
        assert not checkpointer.due(iteration + 1)
        checkpointer.save(state, Counters(iteration=iteration))
    checkpointer.flush()
    assert saved(tmp_path / "checkpoints") == [4, 8, 12, 14]


def test_the_best_stays_too_also_after_a_new_start(checkpointer, tmp_path):
    """D-41: every keep_interval-th, the newest and the best by return, and nothing else."""
    directory, state = tmp_path / "checkpoints", make_state(tiny_policy(), 1)
    scores = {2: None, 6: 1.0, 10: 5.0, 14: 3.0, 18: 2.0}
    for iteration, score in scores.items():
        checkpointer.save(state, Counters(iteration=iteration, best_return=score), score)
    checkpointer.flush()
    assert saved(directory) == [10, 14, 18]
    again = Checkpointer(directory, CONFIG)
    for iteration, score in {22: 4.0, 26: None, 30: 4.5, 34: None}.items():
        again.save(state, Counters(iteration=iteration), score)
    again.flush()
    assert saved(directory) == [10, 30, 34]
    again.save(state, Counters(iteration=38), 6.0)
    again.save(state, Counters(iteration=42), 0.0)
    again.save(state, Counters(iteration=46), 0.0)
    again.close()
    assert saved(directory) == [38, 42, 46]


_ELSEWHERE = """
import sys
from pathlib import Path
import jax, numpy as np
from minestudio_jax.trainer import checkpoint, sharding
from minestudio_jax.trainer.checkpoint import Checkpointer
from minestudio_jax.trainer.state import Counters
from tests.trainer.fragments import tiny_policy
from tests.trainer.test_checkpoint import CONFIG, abstract, make_state
checkpointer, policy = Checkpointer(Path(sys.argv[1]), CONFIG), tiny_policy()
assert jax.device_count() == int(sys.argv[2])
if sys.argv[3] == "save":
    mesh = sharding.make_mesh(CONFIG)
    checkpointer.save(jax.device_put(make_state(policy, 1), sharding.replicated(mesh)), Counters(iteration=2))
else:
    state, counters = checkpointer.restore(abstract(policy))
    assert counters.iteration == 2
    for a, b in zip(jax.tree.leaves(make_state(policy, 1)), jax.tree.leaves(state), strict=True):
        assert len(b.sharding.device_set) == jax.device_count()
        np.testing.assert_array_equal(a, b)
checkpointer.close()
"""


def test_a_checkpoint_of_eight_devices_opens_on_one_and_on_two(tmp_path):
    for devices, what in ((8, "save"), (1, "restore"), (2, "restore")):
        env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "checkpoints"), str(devices), what]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr


def test_a_torn_checkpoint_is_passed_over(checkpointer, tmp_path):
    """D-42."""
    policy = tiny_policy()
    for iteration in (2, 4):
        checkpointer.save(make_state(policy, iteration), Counters(iteration=iteration))
    checkpointer.flush()
    # As a kill while writing leaves it: under Orbax's temporary name.
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "4", directory / "6.orbax-checkpoint-tmp")
    again = Checkpointer(directory, CONFIG)
    _, counters = again.restore(abstract(policy))
    again.close()
    assert counters.iteration == 4


def test_what_a_killed_save_has_left_is_removed(checkpointer, tmp_path):
    """A save at the end, of an iteration that a continued run may never save again."""
    directory, state = tmp_path / "checkpoints", make_state(tiny_policy(), 1)
    checkpointer.save(state, Counters(iteration=2))
    checkpointer.flush()
    shutil.copytree(directory / "2", directory / "3.orbax-checkpoint-tmp")
    again = Checkpointer(directory, CONFIG)
    again.save(state, Counters(iteration=4))  # what is removed in the background is gone by then
    again.close()
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]


def test_a_policy_of_another_shape_is_refused_with_the_remedy(checkpointer):
    checkpointer.save(make_state(tiny_policy(), 1), Counters(iteration=2))
    checkpointer.flush()
    for other in (ImpalaPolicy(SPEC, (4,), 16), ImpalaPolicy(SPEC, (4, 4), 8)):
        with pytest.raises(ValueError, match=r"iteration 2 .* does not fit .* is .*, expected .*--run\.restart=true"):
            checkpointer.restore(abstract(other))


def test_a_failed_write_is_told_at_the_next_call(tmp_path):
    """D-42."""
    checkpointer = Checkpointer(tmp_path / "checkpoints", CONFIG)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("in the way")
    checkpointer.save(make_state(tiny_policy(), 1), Counters(iteration=2))
    with pytest.raises(CheckpointFailure, match=r"checkpoints failed: .*is the disk full"):
        checkpointer.flush()
    checkpointer.close()


def test_whoever_waits_for_a_slow_disk_is_told(checkpointer, monkeypatch, caplog, tmp_path):
    told, write = threading.Event(), checkpointer._write

    def slow(*args):
        assert told.wait(60.0)
        write(*args)

    class Told(logging.Handler):
        def emit(self, record):
            told.set()

    monkeypatch.setattr(checkpoint, "_SAY_SLOW_AFTER_S", 0.05)
    monkeypatch.setattr(checkpointer, "_write", slow)
    monkeypatch.setattr(checkpoint.log, "handlers", [Told()])
    checkpointer.save(make_state(tiny_policy(), 1), Counters(iteration=2))
    checkpointer.flush()
    assert "the checkpoint of iteration 2 is still being written to" in caplog.text
    assert saved(tmp_path / "checkpoints") == [2]


def test_the_same_iteration_is_saved_once(checkpointer, tmp_path):
    state = make_state(tiny_policy(), 1)
    checkpointer.save(state, Counters(iteration=2))
    checkpointer.save(dataclasses.replace(state), Counters(iteration=2))
    checkpointer.flush()
    assert saved(tmp_path / "checkpoints") == [2]
