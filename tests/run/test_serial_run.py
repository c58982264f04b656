"""Everything in one process and thread: the same run as with Ray."""

from __future__ import annotations

import json

import pytest

from tests.run.programs import TINY, Program, metrics

SAME = ("--trainer.num_iterations=4", "--trainer.prefetch_iterations=0", "--trainer.vf_warmup=1")
BESIDE = ("time/", "speed/", "rollout/", "replay/", "episode/", "best_return", "wall_time_s", "logger/")


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("serial") / "run"
    program = Program("train", *TINY, *SAME, "--rollout.mode=serial", f"--run.dir={run_dir}", optimized=True)
    code = program.wait()
    return program, code, run_dir


def test_one_process_learns_and_nothing_is_left(serial):
    program, code, run_dir = serial
    assert code == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    assert [record["iteration"] for record in metrics(run_dir)] == [1, 2, 3, 4]
    assert not (run_dir / "published").exists()
    (worker,) = json.loads((run_dir / "status.json").read_text())["rollout"]["workers"]
    assert (worker["state"], worker["version"]) == ("acting", 5)  # the last is published when it stops


def test_a_ray_worker_that_waits_its_turn_gives_the_same_run(serial, tmp_path):
    """D-59: every number of learning, to the last bit, and every episode; Ray's worker may begin a fifth iteration."""
    *_, run_dir = serial
    program = Program("train", *TINY, *SAME, "--rollout.synchronous", f"--run.dir={tmp_path / 'run'}", optimized=True)
    assert program.wait() == 0, program.stdout + program.stderr

    def learning(folder):
        return [{k: v for k, v in r.items() if not k.startswith(BESIDE)} for r in metrics(folder)]

    assert learning(run_dir) == learning(tmp_path / "run")

    def episodes(folder):
        records = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
        return [(r["return"], r["discounted_return"], r["length"], r["policy_version"]) for r in records]

    assert len(episodes(run_dir)) > 0
    assert episodes(tmp_path / "run")[: len(episodes(run_dir))] == episodes(run_dir)
