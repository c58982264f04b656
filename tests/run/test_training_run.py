"""Whole runs: the train program with real Ray, ended in every way a run can end."""

from __future__ import annotations

import json
import math
import os
import signal
import tracemalloc
import types
from pathlib import Path

import pytest

from minestudio_jax.run.training_run import _summary
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.demonstrations import Demonstrations
from tests.rollout.processes import wait_until
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
    whole_records,
)

TASKS = ("chop_tree", "mine_cobblestone")
OF_TASKS = ('--env.tasks={"chop_tree": 3, "mine_cobblestone": 1}', '--trainer.task_weights={"chop_tree": 0.5}')


def episode_tasks(run_dir):
    """Task of every finished episode."""
    return [episode["task"] for episode in whole_records(run_dir / "episodes.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five iterations of two tasks, to its end."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    program = train(run_dir, "--trainer.num_iterations=5", *OF_TASKS)
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    return run_dir, program


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """Newest version, folder of demonstrations, and the program that played five episodes."""
    run_dir, _ = finished
    newest = policy_store.list_versions(run_dir / "versions")[-1]
    recorded = tmp_path_factory.mktemp("recorded") / "demos"
    program = Program("evaluate", f"--run.dir={run_dir}", "--episodes=5", "--greedy", f"--record={recorded}")
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    return newest, recorded, program


def test_a_run_writes_what_is_promised(finished):
    """D-51."""
    run_dir, _ = finished
    records = metrics(run_dir)
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert record.keys() >= PROMISED
        assert record["trained_steps"] <= record["env_steps"]
        assert math.isfinite(record["loss/value"])
        assert 0 <= record["lag/policy_versions_min"] <= record["lag/policy_versions_max"] <= 4
    assert_counters_never_go_back(records)
    assert records[-1]["trained_steps"] == 5 * 4 * 8
    assert json.loads((run_dir / "config.json").read_text())["rollout"]["fragment_length"] == 8
    assert checkpoints(run_dir) == [2, 4, 5]
    assert policy_store.list_versions(run_dir / "versions")[-1] == records[-1]["policy_version"]
    episodes = [json.loads(line) for line in (run_dir / "episodes.jsonl").read_text().splitlines()]
    assert sum(r["episode/count"] for r in records) <= len(episodes)
    assert all(e["length"] == 12 for e in episodes)


def test_the_screen_says_every_stage_and_nothing_went_to_stderr(finished):
    _, program = finished
    stages = ("starting Ray", "starting 1 rollout worker", "compiling the update", "collecting the first 4 fragments",
              "first update finished", "iteration 5", "checkpoint of iteration 5 written")  # fmt: skip
    at = [program.stdout.find(stage) for stage in stages]
    assert -1 not in at, program.stdout
    assert program.stderr == ""


def test_the_last_words_are_those_of_the_episodes_at_both_ends_of_a_file_of_any_length(tmp_path):
    path = tmp_path / "episodes.jsonl"
    directory = types.SimpleNamespace(path=tmp_path, episodes=path)
    assert _summary(directory) == f"0 episodes in all; everything is in {tmp_path}"
    path.write_text("".join(f'{{"return": {number}}}\n' for number in range(39)))
    assert _summary(directory) == f"39 episodes in all; everything is in {tmp_path}"
    path.write_text("".join(f'{{"return": {number}}}\n' for number in range(100_000)))
    tracemalloc.start()
    said = _summary(directory)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said.startswith("mean return of the first 20 episodes 9.50, of the last 20 99989.50; ")
    assert peak < path.stat().st_size / 4


def test_every_metric_that_is_written_is_explained(finished):
    run_dir, _ = finished
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for name in set().union(*metrics(run_dir)):
        for task in TASKS:
            name = name.replace(task, "<task>")
        if name.startswith("episode/reward/"):
            name = "episode/reward/<name>"
        if name.startswith("auxiliary/"):
            name = "auxiliary/<name>/<metric>"
        assert f"`{name}`" in page, name


def test_the_first_update_sees_the_behaviour_policys_own_probabilities(finished):
    """Acting and learning share the numbers: before any step the ratio of fresh actions is 1."""
    run_dir, _ = finished
    assert metrics(run_dir)[0]["ppo/first_ratio_error"] < 1e-4


def test_a_finished_run_says_so_and_more_iterations_continue_it(finished, evaluated):
    """This time with its own episodes as demonstrations."""
    run_dir, _ = finished
    _, recorded, _ = evaluated
    cloning = f'--trainer.auxiliary={{"behaviour_cloning": {{"path": "{recorded}", "coef": 0.1}}}}'
    more = train(run_dir, "--trainer.num_iterations=7", *OF_TASKS, cloning)
    assert more.wait() == 0, more.stderr
    more.assert_nothing_left()
    records = metrics(run_dir)
    assert [r["iteration"] for r in records] == list(range(1, 8))
    assert_counters_never_go_back(records)
    assert "setting changed since the last start: trainer.num_iterations: 5 -> 7" in more.stdout
    assert "continuing after iteration 5" in more.stdout
    assert [r["iteration"] for r in records if r.get("auxiliary/behaviour_cloning/loss", 0) > 0] == [6, 7]


def test_a_killed_run_continues_from_its_last_checkpoint_and_ctrl_c_saves_and_ends_it_in_good_order(tmp_path):
    """D-40, D-42."""
    run_dir = tmp_path / "run"
    program = train(run_dir)
    wait_for_iteration(program, run_dir, 5)  # and where it is killed between two checkpoints is chance
    program.kill()
    program.wait()
    program.assert_nothing_left()
    reached, saved = metrics(run_dir)[-1]["iteration"], checkpoints(run_dir)[-1]
    assert saved >= 2
    again = train(run_dir, "--trainer.save_interval=100000")
    wait_for_iteration(again, run_dir, reached + 3)
    os.killpg(again.process.pid, signal.SIGINT)  # as a terminal does: the whole group in its foreground
    assert again.wait() == 0, again.stdout + again.stderr
    again.assert_nothing_left()
    assert f"continuing after iteration {saved}," in again.stdout
    assert "stopping after SIGINT" in again.stdout
    records = metrics(run_dir)
    assert_counters_never_go_back(records)
    assert checkpoints(run_dir)[-2:] == [saved, records[-1]["iteration"]]


def test_a_signal_to_every_process_saves_and_ends_in_good_order(tmp_path):
    """As systemd and batch systems send it: Ray and the workers go at the same moment."""
    run_dir = tmp_path / "run"
    program = train(run_dir, "--trainer.save_interval=100000")
    wait_for_iteration(program, run_dir, 2)
    for pid in program.alive():
        os.kill(pid, signal.SIGTERM)
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    assert checkpoints(run_dir) == [metrics(run_dir)[-1]["iteration"]]
    assert "stopping after SIGTERM" in program.stdout


def test_a_run_that_loses_ray_says_so_at_once_and_saves_unless_ray_ends_it(tmp_path):
    """Where Ray's client notices first that Ray is gone, it ends the process without a word: the witness has it then."""
    run_dir = tmp_path / "run"
    program = train(run_dir, "--trainer.save_interval=100000")
    wait_for_iteration(program, run_dir, 2)
    (raylet,) = [pid for pid, command in program.alive().items() if "/raylet/raylet " in command]
    os.kill(raylet, signal.SIGKILL)
    assert program.wait(60.0) == 1, program.stdout + program.stderr
    sentence = f"Ray is gone from this machine: its raylet, process {raylet}, has ended"
    assert sentence in (run_dir / "logs" / "run.log").read_text()
    silent = f"ended without a word: {sentence}" in program.stderr
    assert silent != (f"failed: {sentence}" in program.stdout)
    if "stopping after the loss of Ray" in program.stdout:  # Ray may still end it while it cleans up
        assert checkpoints(run_dir) == [metrics(run_dir)[-1]["iteration"]]
    else:
        assert silent
    program.assert_nothing_left(30.0)  # Ray's workers look now and then whether Ray is there


def test_a_signal_during_the_start_ends_it_in_good_order(tmp_path):
    program = train(tmp_path / "run")
    for line in program.process.stdout:
        if "rollout worker" in line:
            break
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()


SCRIPTED = ("--env.factory=tests.scripted_env:make",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (['--env.options={"fault": "exception", "fault_in": "start"}'], ["got ready in", "the scripted exception", "env.factory"]),
        (['--env.options={"fault": "exception"}', "--env.max_failures_per_hour=1"], ["env.max_failures_per_hour=1", "the scripted exception"]),
        (['--env.python=/no/such/python'], ["env.python='/no/such/python' cannot be run"]),
        (['--env.options={"step_s": 600}', "--run.stall_deadline_s=3"], ["run.stall_deadline_s=3", "0 fragments ready"]),
    ],
    ids=["start", "steps", "interpreter", "stall"],
)  # fmt: skip
def test_environments_that_do_not_work_fail_the_run_with_the_cause(tmp_path, arguments, words):
    """D-38."""
    program = train(tmp_path / "run", *SCRIPTED, "--rollout.num_envs=1", "--rollout.inference_batch_size=1", *arguments)
    assert program.wait() == 1, program.stdout + program.stderr
    program.assert_nothing_left()
    failure = program.stdout.partition("failed: ")[2]
    for word in (*words, "the same command continues"):
        assert word in failure, program.stdout
    assert "ray::" not in failure, failure  # not buried in the traceback of a remote call


def test_two_runs_side_by_side_do_not_disturb_each_other_and_one_directory_holds_one_run(tmp_path):
    """With the ways in which policies travel on clusters, one each."""
    carried = ("--publish.transport=object_store", "--publish.dtype=bfloat16")
    programs = {
        tmp_path / "a": train(tmp_path / "a", "--publish.transport=directory"),
        tmp_path / "b": train(tmp_path / "b", *OF_TASKS, *carried),
    }
    for run_dir, program in programs.items():
        wait_for_iteration(program, run_dir, 2)
    intruder = train(tmp_path / "a")
    assert intruder.wait(30) == 2
    assert f"in use by process {programs[tmp_path / 'a'].process.pid} on" in intruder.stderr
    assert wait_until(lambda: set(episode_tasks(tmp_path / "b")) == set(TASKS), 60)
    for program in programs.values():
        os.kill(program.process.pid, signal.SIGTERM)
    for program in programs.values():
        assert program.wait() == 0, program.stdout + program.stderr
        program.assert_nothing_left()
    played = [episode_tasks(tmp_path / "b").count(task) for task in TASKS]
    for run_dir in programs:
        last = metrics(run_dir)[-1]
        assert checkpoints(run_dir)[-1] == last["iteration"]
        assert last["lag/policy_versions_min"] < last["policy_version"] - 1, "workers got more than the first version"
        assert not (run_dir / "published").exists()
    assert played[0] == 3 * played[1]  # whose episodes are all of one length


def test_evaluate_plays_with_the_newest_policy(evaluated):
    newest, recorded, program = evaluated
    lines = program.stdout.splitlines()
    assert sum(line.startswith("episode ") for line in lines) == 5
    result = json.loads(lines[-1])
    assert result["episodes"] == 5
    assert result["length_mean"] == 12
    assert {f"return_mean/{task}" for task in TASKS} < set(result)
    assert result["policy_version"] == newest
    assert Demonstrations(recorded).steps == 5 * 12


def test_evaluate_of_no_run_or_no_version_is_an_error(finished, tmp_path, capsys):
    run_dir, _ = finished
    for arguments, words in (
        ((f"--run.dir={tmp_path}",), "holds no run"),
        ((f"--run.dir={run_dir}", "--version=9999"), "--version=9999"),
    ):
        assert words in refusal(capsys, "evaluate", *arguments)


def test_dry_run_prints_settings_that_are_a_flag_file_and_starts_nothing(tmp_path):
    program = Program("train", f"--run.dir={tmp_path / 'run'}", *TINY, "--dry_run")
    assert program.wait(30) == 0, program.stderr
    assert not (tmp_path / "run").exists()
    settings, derived = program.stdout.split("# derived")
    assert "steps per iteration: 32" in derived
    assert "parameters: " in derived
    assert "memory of the full buffer: " in derived
    file = tmp_path / "again.flags"
    file.write_text(settings)
    again = Program("train", f"--flagfile={file}", "--dry_run")
    assert again.wait(30) == 0, again.stderr
    assert again.stdout.split("# derived")[0] == settings


def test_a_dry_run_counts_the_devices_that_the_run_would_have(tmp_path):
    """In a process of its own: JAX makes its devices once."""
    arguments = ("--trainer.cpu_devices=2", "--replay.max_chunks=4", "--dry_run")
    program = Program("train", f"--run.dir={tmp_path / 'run'}", *TINY, *arguments, cwd=tmp_path)
    assert program.wait() == 2, program.stderr
    assert "an iteration on 2 devices takes 8 fragments, replay.max_chunks=4 chunks of 1 hold 4" in program.stderr
    assert len(program.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--trainer.launcher=ray", "--trainer.num_hosts=3", "--rollout.mode=device"),
            "rollout.num_envs=4 worlds cannot be spread over the 3 parts",
        ),
        (("--env.task=unpaid.yaml",), "'unpaid.yaml' has no reward"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unpaid.yaml").write_text("text: Do it.\ncustom_init_commands: []\n")
    assert words in refusal(capsys, "train", f"--run.dir={tmp_path / 'run'}", *TINY, *arguments, "--dry_run")
