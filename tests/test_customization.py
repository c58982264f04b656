"""The example of docs/customization.md, run as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from tests.run.programs import Program

PAGE = Path(__file__).parents[1] / "docs/customization.md"


def test_the_pages_example_runs_and_learns(tmp_path):
    page = PAGE.read_text()
    files = re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w*\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["corridor.py", "seer.py", "corridor.flags"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    (command,) = re.findall(r"^python -m minestudio_jax\.(\w+) (.*)$", page, re.MULTILINE)
    program = Program(command[0], *command[1].split(), cwd=tmp_path)
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    run = tmp_path / "runs/corridor"
    returns = [json.loads(line)["return"] for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert np.mean(returns[-50:]) > np.mean(returns[:50]) + 0.3, returns
    assert len(list((run / "logs").glob("env-*.log"))) == 8
    # The page's policy does not name its value head: with its environments and with the embedded world.
    for settings in (("--flagfile=corridor.flags", "--run.dir=warm"), ("--policy.factory=seer:make",)):
        program = Program("train", *settings, "--trainer.vf_warmup=2", cwd=tmp_path)
        assert program.wait() == 2, program.stdout + program.stderr
        assert "trainer.vf_warmup=2 would train all of the Seer of policy.factory='seer:make'" in program.stderr
        assert "only_value_head" in program.stderr
        program.assert_nothing_left()
    assert not (tmp_path / "runs/train").exists()  # of the embedded world that is known before anything starts
