"""Wrong command lines: one clear line, exit code 2, quickly, and nothing left behind."""

from __future__ import annotations

import os
import time

import pytest

from tests.run.in_process import refusal
from tests.run.programs import Program


def refused_by_a_program(*arguments, cwd):
    """The one line of the error."""
    begin = time.monotonic()
    started = Program("train", *arguments, cwd=cwd)
    code = started.wait(30)
    assert time.monotonic() - begin < 10
    started.assert_nothing_left(0)
    assert code == 2, (started.stdout, started.stderr)
    lines = started.stderr.splitlines()
    assert len(lines) == 1, started.stderr
    assert lines[0].startswith("train: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.discont=0.9"], ["trainer.discont", "trainer.discount"]),
        (["--flagfile=missing.flags"], ["missing.flags"]),
        (["--run.dir=/proc/1/run"], ["run.dir='/proc/1/run'", "--run.dir"]),
        (["--env.factory=no.such:thing"], ["env.factory='no.such:thing'", "no.such"]),
        (["extra"], ["unexpected argument 'extra'"]),
    ],
    ids=lambda x: " ".join(x) if x and x[0].startswith(("-", "extra")) else "",
)
def test_a_wrong_command_line_ends_the_program_at_once(tmp_path, arguments, words):
    """At each of the stages that there are: flags, their files, the directory, modules, and what is no flag."""
    line = refused_by_a_program(*arguments, cwd=tmp_path)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.num_iterations=many"], ["trainer.num_iterations", "many"]),
        (["--env.options={"], ["env.options", "JSON"]),
        (
            ["--rollout.fragment_length=65"],
            ["rollout.fragment_length=65", "trainer.context_length=64", "make the one divide the other"],
        ),
        (["--trainer.discount=1.5"], ["trainer.discount=1.5", "greatest value 1"]),
        (["--env.task=chop_trees"], ["chop_trees", "did you mean 'chop_tree'"]),
        (["--env.factory=thing"], ["env.factory='thing'", "package.module:function"]),
        (["--policy.factory=json:nothing"], ["policy.factory='json:nothing'", "'nothing'"]),
        (
            ["--rollout.num_envs=8", "--rollout.inference_batch_size=9"],
            ["rollout.inference_batch_size=9", "rollout.num_envs=8"],
        ),
        (["--run.ray_address=ray://head"], ["run.ray_address='ray://head'", "host:port"]),
        (['--env.options={"preset": "toy"}'], ["preset='toy'", "--env.preset"]),
        (['--env.options={"hils": 2}'], ["hils", "did you mean 'hills'"]),
        (['--env.tasks={"chop_tree": 0}'], ["env.tasks", "share 0 of 'chop_tree'", "above 0"]),
        (['--env.tasks={"chop_tree": 1, "hunt_cow": 1}'], ["'hunt_cow' has the actions", "env.action_set=vpt"]),
        (['--env.tasks={"navigate": 1, "chop_tree": 99}'], ["none of the 16 environments would play 'navigate'"]),
        (['--env.tasks={"chop_tree": 1}', "--env.task=navigate"], ["env.task='navigate' has no effect"]),
        (['--env.tasks={"chop_tree": 1}', "--rollout.mode=device"], ["env.tasks needs rollout workers"]),
        (['--trainer.task_weights={"chop_tre": 1}'], ["'chop_tre' is not played", "did you mean 'chop_tree'"]),
        (['--trainer.task_weights={"chop_tree": 0}'], ["nothing would be learnt"]),
        (
            ['--trainer.auxiliary={"behaviour_cloning": {"coef": 1, "path": "none"}}'],
            ["trainer.auxiliary: behaviour_cloning", "none is not a folder"],
        ),
    ],
    ids=lambda x: " ".join(x) if x and x[0].startswith("-") else "",
)
def test_a_wrong_command_line_is_one_clear_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, "train", *arguments)
    for word in words:
        assert word in line


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refusal(capsys, "train", f"--run.dir={tmp_path / 'file' / 'run'}")
    assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_somebody_elses_directory_is_refused_and_left_as_it_was(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    for arguments in ([], ["--run.restart=true"]):
        line = refusal(capsys, "train", f"--run.dir={tmp_path}", *arguments)
        assert "holds files that are not a run's" in line
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_cluster_that_does_not_answer_is_named_with_the_remedy(tmp_path, capsys):
    line = refusal(capsys, "train", f"--run.dir={tmp_path / 'run'}", "--run.ray_address=127.0.0.1:1")
    assert "run.ray_address='127.0.0.1:1'" in line
    assert "ray start --head" in line
