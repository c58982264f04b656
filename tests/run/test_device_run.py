"""Runs that collect on the device: one process, the same promises."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time

from tests.run.in_process import refusal
from tests.run.programs import (
    PROMISED,
    TINY,
    Program,
    assert_counters_never_go_back,
    checkpoints,
    metrics,
    train,
    wait_for_iteration,
)

DEVICE = ("--rollout.mode=device", "--trainer.save_interval=3")
# Of the clock, or of one process: versions, the first of which it publishes twice, and the last episodes that it saw.
BESIDE = re.compile(r"(time|speed|logger)/|wall_time_s|policy_version|best_return|episode/(\w+_last_20|reward/)")


def stop_between_checkpoints(program, run_dir):
    """Holds the program where it has logged an iteration that its newest checkpoint does not have."""
    while True:
        os.killpg(program.process.pid, signal.SIGSTOP)
        if metrics(run_dir)[-1]["iteration"] > checkpoints(run_dir)[-1]:
            return
        os.killpg(program.process.pid, signal.SIGCONT)
        time.sleep(0.05)


def learning(record):
    return {name: value for name, value in record.items() if not BESIDE.match(name)}


def test_a_killed_run_continues_and_a_stopped_one_ends_in_good_order(tmp_path):
    run_dir = tmp_path / "run"
    program = train(run_dir, *DEVICE)
    wait_for_iteration(program, run_dir, 8)
    others = [command for pid, command in program.alive().items() if pid != program.process.pid]
    assert len(others) == 1, others
    assert "/run/witness.py " in others[0]  # nothing but the program and who would say that it was killed
    stop_between_checkpoints(program, run_dir)
    program.kill()
    program.wait()
    program.assert_nothing_left()
    saved, reached = checkpoints(run_dir)[-1], metrics(run_dir)[-1]["iteration"]
    lost = metrics(run_dir)[saved:]
    again = train(run_dir, *DEVICE, "--logger.sinks=tests.chaos.slow_sink:make")
    wait_for_iteration(again, run_dir, reached + 3)
    os.kill(again.process.pid, signal.SIGTERM)
    assert again.wait() == 0, again.stderr
    again.assert_nothing_left()
    records = metrics(run_dir)
    # A sink that sleeps got what it had time for, and held up neither the loop nor the end.
    assert (run_dir / "slow").read_text().startswith(f"{saved + 1}\n")
    assert sum(record["time/wait_s"] for record in records[saved:]) < 1.0
    assert_counters_never_go_back(records)
    assert all(record.keys() >= PROMISED for record in records)
    assert records[-1]["env_steps"] == records[-1]["trained_steps"] == 32 * records[-1]["iteration"]
    assert sum(record["episode/count"] for record in records) > 0
    # What was lost with the kill is done again, to the last bit.
    assert lost
    done_again = records[saved : saved + len(lost)]
    for once, anew in zip(lost, done_again, strict=True):
        assert learning(once) == learning(anew)
    evaluated = Program("evaluate", f"--run.dir={run_dir}", "--episodes=3")
    assert evaluated.wait() == 0, evaluated.stderr


def learnt(run_dir):
    """All that was learnt, seen and counted, without what the clock says."""
    return [
        {name: value for name, value in record.items() if not re.match("time/|speed/|wall_time_s|logger/", name)}
        for record in metrics(run_dir)
    ]


def test_a_run_that_is_stopped_and_killed_equals_one_that_never_was(tmp_path):
    """D-40: with the returns of the last 20 episodes, which the best return and a new reference follow from, and the
    numbers of policies."""
    settings = (*DEVICE, "--trainer.num_iterations=100", "--trainer.kl_reference_coef=0.1",
                "--trainer.reference_update=best_return", "--trainer.learning_rate=0.003")  # fmt: skip
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    program = train(straight, *settings)
    assert program.wait() == 0, program.stderr
    stops = []
    for at, send in ((30, signal.SIGTERM), (60, signal.SIGKILL)):
        program = train(stopped, *settings, "--logger.heartbeat_s=0.5")
        wait_for_iteration(program, stopped, at)
        os.kill(program.process.pid, send)
        assert program.wait() == (0 if send == signal.SIGTERM else -send), program.stderr
        stops.append(metrics(stopped)[-1]["iteration"])
    assert stops[0] < stops[1] < 100, "the program was faster than the test"
    program = train(stopped, *settings)
    assert program.wait() == 0, program.stderr
    expected = learnt(straight)
    assert learnt(stopped) == expected
    assert expected[-1]["policy_version"] == 101
    best = [record["best_return"] for record in expected]
    assert best[stops[0] - 1] is not None
    assert (straight / "versions" / "best" / "score.json").read_text() == str(best[-1])
    assert (stopped / "versions" / "best" / "score.json").read_text() == str(best[-1])


def test_a_damaged_checkpoint_is_passed_over_and_without_a_whole_one_the_error_says_what_to_do(tmp_path):
    """D-42."""
    run_dir = tmp_path / "run"
    program = train(run_dir, *DEVICE, "--trainer.num_iterations=8")
    assert program.wait() == 0, program.stderr
    assert checkpoints(run_dir) == [3, 6, 8]
    (run_dir / "checkpoints" / "8" / "counters" / "metadata").write_text("")
    again = train(run_dir, *DEVICE, "--trainer.num_iterations=10")
    assert again.wait() == 0, again.stderr
    assert "continuing after iteration 6," in again.stdout
    assert "iteration 8 in" in (run_dir / "logs" / "run.log").read_text()
    assert [record["iteration"] for record in metrics(run_dir)] == list(range(1, 11))
    assert checkpoints(run_dir) == [6, 9, 10]
    for iteration in checkpoints(run_dir):
        (run_dir / "checkpoints" / str(iteration) / "state" / "manifest.ocdbt").unlink()
    before = metrics(run_dir)
    third = train(run_dir, *DEVICE, "--trainer.num_iterations=12")
    assert third.wait() == 2, third.stdout
    assert len(third.stderr.splitlines()) == 1
    assert "whole: 10: state/manifest.ocdbt is missing; 9: state/manifest.ocdbt is missing; 6: " in third.stderr
    assert "put one back from a copy, or give --run.restart=true to start over" in third.stderr
    assert metrics(run_dir) == before


def test_a_checkpoint_at_the_end_that_cannot_be_written_is_told(tmp_path):
    program = train(tmp_path / "run", *DEVICE, "--trainer.save_interval=100000")
    wait_for_iteration(program, tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.wait() == 1, program.stdout + program.stderr
    assert "failed: writing a checkpoint to" in program.stdout
    assert "written" not in program.stdout
    assert "Traceback" not in program.stderr
    program.assert_nothing_left()


def test_worlds_that_do_not_share_the_fragments_equally_are_refused(tmp_path, capsys):
    arguments = (f"--run.dir={tmp_path / 'run'}", *TINY, *DEVICE, "--rollout.num_envs=3")
    assert "rollout.num_envs=3 does not divide an iteration's 4 fragments" in refusal(capsys, "train", *arguments)
