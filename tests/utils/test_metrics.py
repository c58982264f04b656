"""Records on disk survive crashes and never go back."""

from __future__ import annotations

import json

from minestudio_jax.utils.metrics import JsonLines, read_records, rewind


def test_records_are_valid_json_with_null_for_what_is_not_finite(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    log.write({"iteration": 1, "x": float("nan"), "y": float("inf"), "z": 0.5})
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"iteration": 1, "x": None, "y": None, "z": 0.5}


def test_rewind_keeps_up_to_the_checkpoint_moves_the_rest_and_drops_a_torn_line(tmp_path):
    path, discarded = tmp_path / "m.jsonl", tmp_path / "gone.jsonl"
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in range(1, 6)) + '{"itera')
    assert rewind(path, "iteration", 3, discarded) == 2
    assert [r["iteration"] for r in read_records(path)] == [1, 2, 3]
    assert [r["iteration"] for r in read_records(discarded)] == [4, 5]
    log = JsonLines(path)
    log.write({"iteration": 4})
    log.close()
    assert [r["iteration"] for r in read_records(path)] == [1, 2, 3, 4]


def test_rewind_of_a_missing_file_makes_an_empty_one(tmp_path):
    assert rewind(tmp_path / "m.jsonl", "iteration", 0, tmp_path / "gone.jsonl") == 0
    assert read_records(tmp_path / "m.jsonl") == []
