"""The convert program on the golden checkpoints, as a user runs it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from minestudio_jax.policies.pretrained import load_vpt, read_model_file
from minestudio_jax.policies.torch_files import read_torch_file
from tests.policies.vpt_golden import rebuilt
from tests.run.in_process import refusal


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minestudio_jax.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_weights_go_in_and_come_out_bit_for_bit(golden, tmp_path):
    """A Lightning checkpoint to a folder, the folder to .weights and .model, and those are the reference's numbers."""
    checkpoint = rebuilt(golden, "vpt_tiny.lightning.ckpt", tmp_path)
    folder, out = tmp_path / "imported", tmp_path / "deep" / "out.weights"
    imported = convert(f"--model={golden / 'vpt_tiny.model'}", f"--weights={checkpoint}", f"--out={folder}")
    assert (imported.returncode, imported.stderr) == (0, "")
    assert "582,378 parameters" in imported.stdout
    exported = convert(f"--params={folder}", f"--out={out}")
    assert (exported.returncode, exported.stderr) == (0, "")
    before, after = read_torch_file(golden / "vpt_tiny.weights"), read_torch_file(out)
    assert set(before) == set(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert read_model_file(out.with_suffix(".model")) == read_model_file(golden / "vpt_tiny.model")
    _, params = load_vpt(folder, folder)
    assert all(np.isfinite(leaf).all() for leaf in params["network"]["final_norm"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one source"),
        (("--model=a", "--out=x"), "--model and --weights belong together"),
        (("--params=a",), "--out is empty"),
        (("--params=a", "--out=folder"), "ends in .weights"),
        (("--model=a", "--weights=b", "--out=x.weights"), "a folder"),
        (("--model=a", "--weights=b", "--out=x"), "'a'"),
        (("--run=nowhere", "--out=x.weights"), "nowhere"),
    ],
)
def test_a_wrong_command_is_one_line_with_the_remedy(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(capsys, "convert", *arguments)


def test_an_existing_result_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "x.weights").write_text("precious")
    refused = refusal(capsys, "convert", f"--params={tmp_path}", f"--out={tmp_path / 'x.weights'}")
    assert "exists already" in refused
    assert (tmp_path / "x.weights").read_text() == "precious"
