"""What kills environments after their worker: how it starts. What it does is shown in test_process_pool."""

from __future__ import annotations

import sys

import pytest

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout import process_guard
from minestudio_jax.rollout.process_guard import ProcessGuard


@pytest.mark.parametrize(
    ("program", "says"),
    [("raise SystemExit(1)", "its starter failed"), ("import time; time.sleep(600)", r"nothing came in 0\.3 s")],
)
def test_a_guard_that_does_not_start_is_told_in_time(tmp_path, monkeypatch, program, says):
    script = tmp_path / "guard.py"
    script.write_text(program)
    monkeypatch.setattr(process_guard.marked_processes, "__file__", str(script))
    monkeypatch.setattr(process_guard, "_START_DEADLINE_S", 30.0 if "starter" in says else 0.3)
    with pytest.raises(EnvironmentFailure, match=f"cannot be started.*{says}.*free memory"):
        ProcessGuard()


def test_a_guard_that_cannot_be_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EnvironmentFailure, match=r"cannot be started.*No such file"):
        ProcessGuard()
