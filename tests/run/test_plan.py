"""The program that says what a run needs, for devices that are not there."""

from __future__ import annotations

import jax
import pytest

from minestudio_jax.policies.pretrained import write_model_file
from minestudio_jax.policies.vpt_shape import VPTShape
from tests.run.in_process import refusal
from tests.run.programs import TINY, Program


def plan(*arguments):
    program = Program("plan", *TINY, *arguments)
    return program.wait(), program


def figures(program):
    return {line[:37].strip(): line[37:].strip() for line in program.stdout.splitlines()}


@pytest.fixture(scope="module")
def lines():
    code, program = plan(
        "--devices=4", "--trainer.mesh=data:-1,fsdp:2", "--policy.hidden_size=64", "--trainer.kl_reference_coef=0.1",
        "--device_tflops=0.001", "--utilisation=0.5", "--env_steps_per_s=10",
    )  # fmt: skip
    assert code == 0, program.stderr
    return figures(program)


def test_the_figures_fit_each_other(lines):
    assert lines["mesh"] == "data 2 x fsdp 2 x tensor 1: 4 devices, compiled for CPUs"
    # Two fragments of eight steps in each of four parts of each of two batches.
    assert lines["an update"].startswith("128 steps in 2 optimiser steps, ")
    assert lines["replay"].startswith("32 fragments of ")  # two iterations' worth
    parameters = int(lines["parameters in all"].split()[0].replace(",", "")) * 4 / 1000
    assert lines["parameters in all"].endswith(f"({parameters:,.1f} kB)")
    of_each = {name: float(lines[name].split()[0]) for name in ("parameters", "optimiser", "reference")}
    assert all(lines[name].split()[1] == "kB" for name in ("optimiser", "reference"))
    assert 0.5 * parameters < of_each["reference"] < 0.6 * parameters  # half of what is split, all of what is small
    assert of_each["optimiser"] == pytest.approx(2 * of_each["reference"], rel=0.01)
    assert "all-gather" in lines["network"]
    assert "reduce-scatter" in lines["network"]
    seconds = float(lines["time of an update"].split()[0])
    environments = int(lines["environments"].split()[0].replace(",", ""))
    assert environments == pytest.approx(128 / seconds / 10, rel=0.02, abs=1)


def test_a_model_file_does_not_bring_in_the_accelerators(tmp_path):
    """JAX is imported to read it, where the environment names a platform that is not there."""
    write_model_file(VPTShape(32, 2, 1, 8, channels=(4,), image_size=(16, 16)), tmp_path / "small.model")
    arguments = (
        "--env.factory=minerl", "--policy.network=vpt", f"--policy.vpt_model={tmp_path / 'small.model'}",
        "--rollout.fragment_length=8", "--trainer.context_length=4", "--trainer.batch_size_per_device=1",
        "--trainer.batches_per_iteration=1", "--device_tflops=1", "--devices=2",
    )  # fmt: skip
    program = Program("plan", *arguments, environment={"JAX_PLATFORMS": "cuda"})
    assert program.wait() == 0, program.stderr
    assert figures(program)["mesh"] == "data 2 x fsdp 1 x tensor 1: 2 devices, compiled for CPUs"


def test_the_cpu_is_so_many_devices_as_the_settings_say():
    code, program = plan("--trainer.cpu_devices=2", "--device_tflops=1")
    assert code == 0, program.stderr
    assert figures(program)["mesh"] == "data 2 x fsdp 1 x tensor 1: 2 devices, compiled for CPUs"


def test_devices_that_the_mesh_cannot_share_are_said_in_one_line():
    code, program = plan("--devices=3", "--trainer.mesh=data:-1,fsdp:2")
    assert code == 2
    assert "needs a multiple of 2 devices, the learner has 3" in program.stderr
    assert len(program.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--replay.max_chunks=8",), "takes 16 fragments, replay.max_chunks=8 chunks of 1 hold 8: raise"),
        (("--devices=-1",), "--devices=-1 is not"),
        (("--utilisation=0",), "--utilisation=0.0 is not a number above 0"),
        (("--env.factory=minerl",), "only once one has started; plan with policy.network=vpt"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(jax, "device_count", lambda: 4)  # a process cannot get other devices than it has
    assert said in refusal(capsys, "plan", *TINY, *arguments)
