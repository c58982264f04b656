"""`evaluate`, where there is nothing to play; that it plays is seen where runs are trained."""

from __future__ import annotations

import json

from minestudio_jax.config import Config, EnvConfig, RolloutConfig
from tests.run.programs import Program


def test_environments_that_do_not_start_are_told_with_their_log(tmp_path):
    (tmp_path / "broken.py").write_text("def make(index, seed):\n    raise RuntimeError('no such device')\n")
    run_dir = tmp_path / "run"
    (run_dir / "versions" / "00000001").mkdir(parents=True)
    (run_dir / "logs").mkdir()
    config = Config(env=EnvConfig(factory="broken:make"), rollout=RolloutConfig(num_envs=1, inference_batch_size=1))
    (run_dir / "config.json").write_text(json.dumps(config.to_dict()))
    program = Program("evaluate", f"--run.dir={run_dir}", cwd=tmp_path)
    assert program.wait() == 1, program.stdout + program.stderr
    program.assert_nothing_left()
    _, told = program.stderr.split("evaluate: failed: ")
    assert told.startswith("none of 1 environments got ready in 3 attempts")
    assert "no such device" in told
    assert "in run_program" not in program.stderr  # it is no fault of ours, and has no traceback
