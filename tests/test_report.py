from __future__ import annotations

import json
import subprocess
import sys


def report(*arguments):
    command = [sys.executable, "-m", "minestudio_jax.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def write_run(folder):
    folder.mkdir(parents=True)
    records = [
        {"env_steps": 100 * i, "wall_time_s": 10.0 * i, "episode/return_mean_last_20": None if i == 0 else i / 2}
        for i in range(5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_the_curves_of_two_runs_become_a_picture(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    out = tmp_path / "curve.png"
    done = report(f"--runs={tmp_path / 'a'},{tmp_path / 'b'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert done.stdout == f"wrote {out}\n"


def test_runs_whose_folders_have_one_name_have_a_curve_each(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("old/run", "new/run", "new/other")]
    out = tmp_path / "curve.svg"
    done = report("--runs=" + ",".join(map(str, runs)), f"--out={out}")
    assert done.returncode == 0, done.stderr
    picture = out.read_text()  # in which each text stands as a comment
    for label in (runs[0], runs[1], "other"):
        assert f"<!-- {label} -->" in picture


def test_what_cannot_be_drawn_is_one_clear_line(tmp_path):
    for arguments, words in (
        ([], "--runs is empty"),
        ([f"--runs={tmp_path}"], f"there is no {tmp_path}/metrics.jsonl"),
    ):
        done = report(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
