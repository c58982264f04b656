"""Checkpoints: everything comes back bit-equal, what is torn is passed over, what is old goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer import checkpoint, manifest, sharding
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


def abstract(policy, devices=None):
    state = jax.eval_shape(lambda: initial_state(policy, CONFIG, jax.random.key(0)))
    return sharding.with_sharding(state, sharding.replicated(sharding.make_mesh(TrainerConfig(), devices)))


def assert_restored(checkpointer, policy, seed, devices):
    """As iteration 2, on these devices and no others."""
    state, counters = checkpointer.restore(abstract(policy, devices))
    assert counters.iteration == 2
    for a, b in zip(jax.tree.leaves(make_state(policy, seed)), jax.tree.leaves(state), strict=True):
        assert b.sharding.device_set == set(devices)
        np.testing.assert_array_equal(a, b)


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


_ON_EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.checkpoint import Checkpointer
from minestudio_jax.trainer.state import Counters
from tests.trainer.fragments import tiny_policy
from tests.trainer.test_checkpoint import CONFIG, assert_restored, make_state
checkpointer, policy = Checkpointer(Path(sys.argv[1]), CONFIG), tiny_policy()
assert jax.device_count() == 8
state = jax.device_put(make_state(policy, 1), sharding.replicated(sharding.make_mesh(CONFIG)))
checkpointer.save(state, Counters(iteration=2))
checkpointer.flush()
assert_restored(checkpointer, policy, 1, jax.devices()[4:6])
checkpointer.close()
"""


def test_a_checkpoint_of_eight_devices_opens_on_one_and_on_two(tmp_path):
    """On one where the others do not exist, as here."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", _ON_EIGHT_DEVICES, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    (only,) = jax.devices()
    checkpointer = Checkpointer(tmp_path / "checkpoints", CONFIG)
    assert_restored(checkpointer, tiny_policy(), 1, [only])
    checkpointer.close()


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


def damaged(directory, name, harm):
    path = directory / name
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    elif harm == "flipped":
        path.write_bytes(
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
        )
    else:
        path.write_bytes({"emptied": b"", "truncated": content[:-1]}[harm])


def read(directory):
    """The iteration that a new start goes on with, and whether it is the one that was saved."""
    again, policy = Checkpointer(directory, CONFIG), tiny_policy()
    state, counters = again.restore(abstract(policy))
    assert again.saved == counters.iteration
    again.close()
    expected = make_state(policy, counters.iteration)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(expected), jax.device_get(state))
    return counters.iteration


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A folder with the checkpoints of two iterations, 2 and 4; not to be changed."""
    directory = tmp_path_factory.mktemp("two_saved") / "checkpoints"
    made = Checkpointer(directory, CONFIG)
    for iteration in (2, 4):
        made.save(make_state(tiny_policy(), iteration), Counters(iteration=iteration), float(iteration))
    made.close()
    return directory


@pytest.fixture
def two(two_saved, tmp_path):
    return Path(shutil.copytree(two_saved, tmp_path / "two"))


def test_a_manifest_names_every_file_with_its_size_and_hash(two_saved):
    """D-42."""
    files = json.loads((two_saved / "4" / "manifest.json").read_text())["files"]
    there = {str(p.relative_to(two_saved / "4")) for p in (two_saved / "4").rglob("*") if p.is_file()}
    assert there - files.keys() == {"manifest.json", "commit_success.txt"}, "Orbax's own mark, which it never reads"
    assert files.keys() <= there
    for name, facts in files.items():
        content = (two_saved / "4" / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("harm", ["flipped", "truncated", "emptied", "removed"])
def test_damage_to_any_file_is_noticed_and_the_older_checkpoint_read(harm, two_saved, tmp_path, caplog):
    """D-42."""
    names = sorted(str(p.relative_to(two_saved)) for p in (two_saved / "4").rglob("*") if p.is_file())
    names.remove("4/commit_success.txt")
    assert len(names) > 10
    for number, name in enumerate(names):
        directory = Path(shutil.copytree(two_saved, tmp_path / str(number)))
        damaged(directory, name, harm)
        caplog.clear()
        assert read(directory) == 2, name
        assert f"the checkpoint of iteration 4 in {directory} is damaged and passed over: " in caplog.text
        # A manifest in which a byte of a hash has changed does not fit the file of that hash.
        assert name.removeprefix("4/") in caplog.text or (name, harm) == ("4/manifest.json", "flipped")
        assert saved(directory) == [2]
        assert (directory / "4.damaged").is_dir()


@pytest.mark.parametrize("what", ["state", "counters", "."])
def test_a_folder_that_is_gone_is_noticed(what, two):
    """D-42."""
    shutil.rmtree(two / "4" / what)
    (two / "4").mkdir(exist_ok=True)
    assert read(two) == 2


def test_a_byte_flipped_anywhere_in_the_arrays_is_noticed(two):
    """D-42."""
    largest = max((two / "4" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(content), 200):
        largest.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :])
        with pytest.raises(manifest.Damaged, match=str(largest.name)):
            manifest.verify(two / "4")
    largest.write_bytes(content)
    assert read(two) == 4


def test_the_iteration_of_a_damaged_checkpoint_can_be_saved_again(two):
    """D-42: Orbax saves nothing that is not newer than all it sees."""
    for _ in range(2):
        damaged(two, "4/counters/metadata", "emptied")
        again, policy = Checkpointer(two, CONFIG), tiny_policy()
        again.restore(abstract(policy))
        again.save(make_state(policy, 4), Counters(iteration=4))
        again.close()
        assert read(two) == 4
    assert sorted(p.name for p in two.iterdir()) == ["2", "4", "4.damaged", "4.damaged-2"]


def test_without_any_whole_checkpoint_nothing_is_begun_anew(two):
    """D-42: neither does a second start take the files for a new run's."""
    damaged(two, "4/state/manifest.ocdbt", "truncated")
    damaged(two, "2/counters/metadata", "removed")
    for _ in range(2):
        again = Checkpointer(two, CONFIG)
        with pytest.raises(
            CheckpointFailure,
            match=r"none of .* is whole: 4: state/manifest.ocdbt has \d+ bytes instead of \d+; 2: counters/metadata is "
            r"missing; put one back from a copy, or give --run.restart=true",
        ):
            again.restore(abstract(tiny_policy()))
        again.close()
        assert saved(two) == [2, 4]


def test_an_unreadable_score_of_an_older_checkpoint_does_not_stop_the_run(two, caplog):
    """D-42: Orbax reads those of all checkpoints before anything else."""
    damaged(two, "2/metrics/metrics", "emptied")
    assert read(two) == 4
    assert "2/metrics/metrics cannot be read: that checkpoint no longer counts as one of the best" in caplog.text
    caplog.clear()
    (two / "2" / "metrics" / "metrics.damaged").rename(two / "2" / "metrics" / "metrics")
    (two / "2").rename(two / "2.damaged")
    assert read(two) == 4
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def as_written_before_manifests(checkpoint):
    (checkpoint / "manifest.json").unlink()
    path = checkpoint / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps({**json.loads(path.read_text()), "custom_metadata": {}}))


def test_checkpoints_written_before_there_were_manifests_go_on(two, caplog):
    for iteration in (2, 4):
        as_written_before_manifests(two / str(iteration))
    assert read(two) == 4
    assert "the checkpoint of iteration 4" in caplog.text
    assert "has no manifest.json, as it was written by an older version of minestudio_jax" in caplog.text


@pytest.mark.parametrize(
    "name", ["counters/metadata", "state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"]
)
@pytest.mark.parametrize("harm", ["emptied", "truncated", "removed"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves reads of its under way
def test_an_old_checkpoint_that_cannot_be_read_is_passed_over(name, harm, two, caplog):
    """D-42."""
    for iteration in (2, 4):
        as_written_before_manifests(two / str(iteration))
    damaged(two / "4", name, harm)
    assert read(two) == 2
    assert "the checkpoint of iteration 4 in" in caplog.text
    assert "4.damaged" in caplog.text


def test_an_old_checkpoint_of_another_shape_is_no_damage(two):
    as_written_before_manifests(two / "4")
    again = Checkpointer(two, CONFIG)
    with pytest.raises(ValueError, match="does not fit"):
        again.restore(abstract(ImpalaPolicy(SPEC, (4,), 16)))
    again.close()
    assert saved(two) == [2, 4]


def test_writing_the_manifest_holds_nobody_up(checkpointer, tmp_path, monkeypatch):
    """D-42: it is written behind the learner, and the checkpoint has no name before."""
    begun, may_go_on, write = threading.Event(), threading.Event(), manifest.write

    def slow(folder):
        begun.set()
        assert may_go_on.wait(60.0)
        write(folder)

    monkeypatch.setattr(manifest, "write", slow)
    checkpointer.save(make_state(tiny_policy(), 2), Counters(iteration=2))
    assert begun.wait(60.0)
    assert saved(tmp_path / "checkpoints") == []
    may_go_on.set()
    checkpointer.flush()
    assert read(tmp_path / "checkpoints") == 2


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


def test_killed_at_any_moment_of_a_save_it_goes_on_from_the_last_that_was_finished(tmp_path):
    """D-42: twenty times; what was flushed is never lost, and what is read is what was saved, every array of it."""
    directory = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "tests.trainer.saves_until_killed", str(directory), "20", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    began = [int(line) for line in done.stdout.split()]
    assert len(began) == 21
    assert len(set(began)) > 3, "some lives got further than the one before"
    assert len(set(began)) < 20, "and some were killed in a save"
    assert saved(directory)[-1] == began[-1]
    assert {path.name for path in directory.iterdir()} == {str(step) for step in saved(directory)}, "no remains"


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
