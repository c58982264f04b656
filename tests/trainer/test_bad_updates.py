"""Steps that were not finite: counted over iterations, and written down."""

from __future__ import annotations

import numpy as np

from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.trainer.bad_updates import BadUpdates
from minestudio_jax.trainer.update import Diagnosis
from minestudio_jax.utils.metrics import read_records


def diagnosis(*epochs):
    skipped = np.array(epochs, bool)
    rows = np.arange(skipped.size * 2, dtype=np.int32).reshape(*skipped.shape, 2) % 4
    return Diagnosis(skipped, rows)


def test_only_steps_in_a_row_are_too_many(tmp_path):
    bad = BadUpdates(tmp_path / "bad.jsonl", 3)
    assert not bad.observe(0, diagnosis([1, 1], [0, 1]), ())
    assert not bad.observe(1, diagnosis([1, 0], [0, 0]), ())
    assert bad.in_a_row == 0
    assert not bad.observe(2, diagnosis([0, 0], [1, 1]), ())
    assert bad.observe(3, diagnosis([1, 0], [0, 0]), ())


def test_the_fragments_of_a_skipped_step_are_named(tmp_path):
    metadata = [FragmentMetadata(0, 0, env, 7, 448, 64, "s", 3, 4, "hunt_cow") for env in range(4)]
    BadUpdates(tmp_path / "bad.jsonl", 3).observe(5, diagnosis([0, 1]), metadata)
    BadUpdates(tmp_path / "bad.jsonl", 3).observe(6, diagnosis([1, 0]), ())
    named, numbered = read_records(tmp_path / "bad.jsonl")
    assert (named["iteration"], named["epoch"], named["step"]) == (5, 0, 1)
    assert [f["env_id"] for f in named["fragments"]] == [2, 3]
    assert named["fragments"][0]["task"] == "hunt_cow"
    assert numbered["fragments"] == [0, 1]


def test_without_a_bad_step_there_is_no_file(tmp_path):
    BadUpdates(tmp_path / "bad.jsonl", 3).observe(0, diagnosis([0, 0]), ())
    assert not (tmp_path / "bad.jsonl").exists()
