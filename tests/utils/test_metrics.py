"""Records on disk survive crashes and never go back."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest

from minestudio_jax.utils import metrics
from minestudio_jax.utils.metrics import JsonLines, first_records, last_records, read_records, rewind


def write_iterations(path, iterations, rest=""):
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in iterations) + rest)


def iterations(records):
    return [record["iteration"] for record in records]


def test_records_are_valid_json_with_null_for_what_is_not_finite(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    log.write({"iteration": 1, "x": float("nan"), "y": float("inf"), "z": 0.5})
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"iteration": 1, "x": None, "y": None, "z": 0.5}


def test_rewind_keeps_up_to_the_checkpoint_moves_the_rest_and_drops_a_torn_line(tmp_path):
    path, discarded = tmp_path / "m.jsonl", tmp_path / "gone.jsonl"
    write_iterations(path, range(1, 6), '{"itera')
    assert rewind(path, "iteration", 3, discarded) == 2
    assert [r["iteration"] for r in read_records(path)] == [1, 2, 3]
    assert [r["iteration"] for r in read_records(discarded)] == [4, 5]
    log = JsonLines(path)
    log.write({"iteration": 4})
    log.close()
    assert [r["iteration"] for r in read_records(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("block", [1, 7, 16, 1 << 16])
@pytest.mark.parametrize(
    "rest", ["", '{"iteration": 9', '{"iteration": 9}', "\0" * 40], ids=["", "torn", "unended", "nothing"]
)
def test_rewind_cuts_at_any_place_and_the_ends_are_what_all_records_say(tmp_path, monkeypatch, block, rest):
    """Several records of an iteration, and whatever a killed writer or a power failure has left behind the last."""
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block)
    written = [1, 1, 2, 4, 4, 4, 8]
    for last in range(10):
        path, discarded = tmp_path / f"{last}.jsonl", tmp_path / f"{last}-gone.jsonl"
        write_iterations(path, written, rest)
        every = written + [9] * (rest == '{"iteration": 9}')
        for number in (1, 3, 100):
            assert iterations(first_records(path, number)) == every[:number]
            assert iterations(last_records(path, number)) == every[-number:]
        stay, go = [i for i in every if i <= last], [i for i in every if i > last]
        assert rewind(path, "iteration", last, discarded) == len(go)
        assert path.read_text() == "".join(f'{{"iteration": {i}}}\n' for i in stay)
        assert iterations(read_records(discarded)) == go
        assert discarded.exists() == bool(go)


def test_rewind_reads_what_goes_and_nothing_else(tmp_path, monkeypatch):
    """The file of weeks does not fit into memory, and a start does not wait for it."""
    path, discarded = tmp_path / "m.jsonl", tmp_path / "gone.jsonl"
    write_iterations(path, range(200_000))
    parsed, parse = [], json.loads
    monkeypatch.setattr(metrics.json, "loads", lambda line: parsed.append(line) or parse(line))
    tracemalloc.start()
    moved = rewind(path, "iteration", 199_989, discarded)
    ends = first_records(path, 2) + last_records(path, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert moved == 10
    assert len(parsed) < 40
    assert peak < path.stat().st_size / 4
    assert iterations(ends) == [0, 1, 199_988, 199_989]


def test_rewind_leaves_a_file_alone_of_which_nothing_goes(tmp_path):
    path = tmp_path / "m.jsonl"
    write_iterations(path, range(5))
    os.utime(path, ns=(0, 0))
    before = path.stat()
    assert rewind(path, "iteration", 4, tmp_path / "gone.jsonl") == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, 0)
    assert not (tmp_path / "gone.jsonl").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["write", "sync", "cut"])
def test_a_kill_while_it_rewinds_loses_nothing(tmp_path, monkeypatch, at):
    """What goes is whole in the other file before the first is touched; half of a record there harms no other one."""
    path, discarded = tmp_path / "m.jsonl", tmp_path / "gone.jsonl"
    write_iterations(path, range(1, 6))
    whole = path.read_bytes()
    synced = []

    def killed(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        if at == "cut" and len(synced) == 1:
            return
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "fsync", killed)
        with pytest.raises(Killed):
            rewind(path, "iteration", 3, discarded)
    assert iterations(read_records(discarded)) == [4, 5]
    assert synced == [str(discarded), str(path)][: len(synced)]
    if at == "cut":
        assert iterations(read_records(path)) == [1, 2, 3]
        return
    assert path.read_bytes() == whole
    if at == "write":  # before the last of it was written
        discarded.write_bytes(discarded.read_bytes()[:-5])
    rewind(path, "iteration", 3, discarded)
    assert iterations(read_records(path)) == [1, 2, 3]
    assert iterations(read_records(discarded)) == ([4, 4, 5] if at == "write" else [4, 5, 4, 5])


def test_rewind_of_a_missing_file_makes_an_empty_one(tmp_path):
    assert rewind(tmp_path / "m.jsonl", "iteration", 0, tmp_path / "gone.jsonl") == 0
    assert read_records(tmp_path / "m.jsonl") == []
