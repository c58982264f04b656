from __future__ import annotations

import json
import subprocess
import sys


def report(*arguments):
    command = [sys.executable, "-m", "minestudio_jax.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_curves_of_two_runs_become_a_picture(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        records = [
            {"env_steps": 100 * i, "wall_time_s": 10.0 * i, "episode/return_mean_last_20": None if i == 0 else i / 2}
            for i in range(5)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    out = tmp_path / "curve.png"
    done = report(f"--runs={tmp_path / 'a'},{tmp_path / 'b'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert done.stdout == f"wrote {out}\n"


def test_what_cannot_be_drawn_is_one_clear_line(tmp_path):
    for arguments, words in (
        ([], "--runs is empty"),
        ([f"--runs={tmp_path}"], f"there is no {tmp_path}/metrics.jsonl"),
    ):
        done = report(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
