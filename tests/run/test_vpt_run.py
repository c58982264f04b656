"""VPT from end to end: the shipped settings with small networks, at VPT's 128x128 and with its actions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minestudio_jax.config import Config, ConfigError, PolicyConfig
from minestudio_jax.policies.make_policy import pretrained_params
from minestudio_jax.policies.pretrained import load_vpt
from tests.run.in_process import refusal
from tests.run.programs import Program, metrics

FLAGS = f"--flagfile={Path(__file__).parents[2] / 'configs/vpt_finetune_chop_tree.flags'}"
# Dirt before the eyes, which every blow breaks: a network that knows nothing is rewarded, too.
SMALL = (
    "--env.task=collect_dirt",
    '--env.options={"size": 24, "height": 20, "time_limit": 20, "spawn_pitch": 60, "break_speed_multiplier": 1000}',
    "--rollout.num_rollout_workers=1",
    "--rollout.num_envs=2",
    "--rollout.inference_batch_size=2",
    "--rollout.fragment_length=8",
    "--trainer.context_length=4",
    "--trainer.batch_size_per_device=2",
    "--trainer.batches_per_iteration=2",
    "--trainer.num_iterations=3",
    "--trainer.prefetch_iterations=0",
    "--trainer.vf_warmup=1",
    "--replay.max_chunks=16",
    "--logger.heartbeat_s=1",
)


def weights(golden: Path) -> tuple[str, str]:
    return (
        f"--policy.vpt_model={golden / 'vpt_slim128.model'}",
        f"--policy.vpt_weights={golden / 'vpt_slim128.weights'}",
    )


def test_pretrained_weights_are_fine_tuned_through_ray_and_exported_again(golden, tmp_path):
    """Workers and learner agree on log-probabilities, and what comes out is no longer what went in."""
    run_dir = tmp_path / "run"
    arguments = (f"--run.dir={run_dir}", FLAGS, *SMALL, *weights(golden), "--policy.compute_dtype=float32")
    program = Program("train", *arguments)
    assert program.wait(240) == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    records = metrics(run_dir)
    assert [record["iteration"] for record in records] == [1, 2, 3]
    agreements = [r["ppo/first_ratio_error"] for r in records if r["ppo/first_ratio_error"] is not None]
    assert agreements
    assert max(agreements) < 1e-3
    assert all(abs(record["loss/kl_reference"]) < 0.05 for record in records)
    assert [record["ppo/kl_reference_coef"] for record in records] == pytest.approx([0.2 * 0.9995**i for i in range(3)])
    out = tmp_path / "tuned.weights"
    command = [sys.executable, "-m", "minestudio_jax.convert", f"--run={run_dir}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    _, tuned = load_vpt(out.with_suffix(".model"), out)
    _, original = load_vpt(golden / "vpt_slim128.model", golden / "vpt_slim128.weights")
    kernel, before = (x["network"]["pi"]["camera"]["kernel"] for x in (tuned, original))
    assert 0 < abs(kernel - before).max() < 1e-3  # a few steps of 2e-5
    assert (tuned["network"]["value_head"]["kernel"] != 0).any()  # began at 0


def test_a_small_random_network_learns_on_the_device_in_bfloat16(tmp_path):
    run_dir = tmp_path / "run"
    shape = '{"hidsize": 32, "heads": 2, "layers": 1, "memory": 8, "channels": [4, 4]}'
    given = [f"--policy.vpt={shape}", "--policy.vpt_model=", "--policy.vpt_weights=", "--rollout.mode=device"]
    few = ["--trainer.num_iterations=2", "--trainer.kl_reference_coef=0", "--trainer.kl_reference_decay=1"]
    few += ["--replay.max_reuse=1", "--replay.max_staleness=4"]
    program = Program("train", f"--run.dir={run_dir}", FLAGS, *SMALL, *given, *few)
    assert program.wait(240) == 0, program.stdout + program.stderr
    assert len(metrics(run_dir)) == 2


def test_weights_of_another_network_are_refused_before_anything_starts(golden, tmp_path):
    """Which can be told once they have been read, and the run has its directory and its log."""
    other = f"--policy.vpt_weights={golden / 'vpt_tiny.weights'}"
    program = Program("train", f"--run.dir={tmp_path / 'run'}", FLAGS, *SMALL, *weights(golden), other, cwd=tmp_path)
    assert program.wait(60) == 2, program.stdout
    assert "attention heads" in program.stderr
    assert len(program.stderr.splitlines()) == 1, program.stderr


def test_files_and_settings_that_do_not_fit_are_refused_without_a_run(golden, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = (f"--run.dir={tmp_path / 'run'}", FLAGS)
    model, tensors = weights(golden)
    for arguments, words in (
        ((), "policy.vpt_model='weights/foundation-model-1x.model': there is no such file"),
        ((model, tensors, "--env.height=64"), "env.height=128"),
        ((model, tensors, "--env.action_set=discrete"), "env.action_set=vpt"),
        ((model, tensors, '--policy.vpt={"hidsize": 64}'), "policy.vpt_model"),
        ((model, tensors, "--policy.network=impala"), "policy.vpt_model"),
        ((f"--policy.vpt_model={golden / 'vpt_tiny.weights'}", tensors), "policy.vpt_model"),
    ):
        assert words in refusal(capsys, "train", *run, *SMALL, *arguments)
    assert not (tmp_path / "run").exists()
    missing = Config(policy=PolicyConfig(network="vpt", vpt_weights="nowhere.weights"))
    with pytest.raises(ConfigError, match=r"policy\.vpt_weights='nowhere\.weights': there is no such"):
        pretrained_params(missing)
