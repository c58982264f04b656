"""Training through MineRL's real client, whose engine is a scripted stand-in that breaks again and again."""

from __future__ import annotations

import json

from tests.envs import engines
from tests.run.programs import Program, metrics


def test_not_one_transition_is_trained_on_that_was_not(client_python, tmp_path):
    """The engine closes the connection in place of an answer: the client then invents a frame."""
    run_dir, diary = tmp_path / "run", tmp_path / "diary"
    options = {
        "client": "minestudio",
        "commands": False,  # so that every episode has a new world, whose frames begin anew
        "resolution": [16, 10],
        "display": "minerl_headless",
        "work_dir": str(tmp_path / "work"),
        "launch_command": engines.command(diary=diary, episode=20, end="mission", fault="error", fault_after=70),
    }
    program = Program(
        "tests.run.verified_minerl_train",
        f"--run.dir={run_dir}",
        "--env.factory=minerl",
        f"--env.python={client_python}",
        f"--env.options={json.dumps(options)}",
        "--env.task=chop_tree",
        "--policy.channels=4",
        "--policy.hidden_size=16",
        "--rollout.num_envs=2",
        "--rollout.inference_batch_size=2",
        "--rollout.fragment_length=8",
        "--rollout.num_cpus_per_worker=2",
        "--trainer.context_length=8",
        "--trainer.batch_size_per_device=2",
        "--trainer.batches_per_iteration=2",
        "--trainer.num_iterations=12",
        "--trainer.save_interval=100",
        "--logger.heartbeat_s=1",
        environment={"MINESTUDIO_DIR": str(tmp_path / "minestudio")},
    )
    assert program.wait(240) == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    faults = [line.split(maxsplit=1)[1:] for line in (run_dir / "verified").read_text().splitlines()]
    assert len(faults) >= 12
    assert not any(faults), faults
    records = metrics(run_dir)
    assert sum(record["rollout/env_failures/error_info"] for record in records) >= 2
    assert sum(record["rollout/env_failures"] for record in records) == sum(
        record["rollout/env_failures/error_info"] for record in records
    )
    assert sum(record["episode/count"] for record in records) > 0
    assert len(engines.lives(diary)) >= 4
