"""Every script of launch/: how it reads, what it says of itself, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import CALLS, FLAGS, LAUNCH, ROOT, SLICE, TYPE, call, dry_run

SOURCED = {"lib.sh", "tpu_vm/slice.sh"}


def test_no_script_is_forgotten():
    there = {p.relative_to(LAUNCH).as_posix() for p in LAUNCH.rglob("*") if p.suffix in (".sh", ".sbatch")}
    assert there == set(CALLS) | SOURCED
    for name in CALLS:
        assert os.access(LAUNCH / name, os.X_OK), name


def test_shellcheck_is_content():
    scripts = [str(LAUNCH / name) for name in (*CALLS, *SOURCED)]
    checker = Path(sys.executable).parent / "shellcheck"
    result = subprocess.run(
        [checker, *scripts, ROOT / ".ci/run"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", CALLS)
def test_help_names_every_option(script):
    result = call(script, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "--dry_run" in result.stdout
    for option in CALLS[script]:
        if option == "--":
            break
        if option.startswith("--"):
            assert option.split("=")[0] in result.stdout


@pytest.mark.parametrize("script", CALLS)
def test_a_dry_run_needs_nothing_and_does_nothing(script, tmp_path):
    bare, home = tmp_path / "bin", tmp_path / "home"
    bare.mkdir()
    home.mkdir()
    for program in ("bash", "dirname", "sed", "hostname", "nproc", "id", "seq"):
        (bare / program).symlink_to(str(shutil.which(program)))
    environment = {"PATH": str(bare), "HOME": str(home)}
    commands = dry_run(script, *CALLS[script], environment=environment)
    assert commands
    assert commands == dry_run(script, *CALLS[script], environment=environment)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("script", CALLS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--colour=red", "unknown option --colour"),
        ("--dry_runs", "unknown option --dry_runs"),
        ("red", "unexpected argument 'red'"),
    ],
)
def test_what_is_not_known_is_refused(script, wrong, said):
    verb = CALLS[script][:1] if script == "tpu_vm/host.sh" else ()
    result = call(script, *verb, wrong, "--dry_run")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{Path(script).name}: error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


REFUSED = [
    ("local_multihost.sh", ["--hosts=0"], "--hosts=0 is not a whole number of at least 1"),
    ("local_multihost.sh", ["--hosts=two"], "--hosts=two is not a whole number of at least 1"),
    ("local_multihost.sh", ["--devices="], "--devices= is not a whole number"),
    ("local_multihost.sh", ["--minecraft=-1"], "--minecraft=-1 is not a whole number of at least 0"),
    ("local_multihost.sh", ["--hosts"], "--hosts lacks its value: give it as --hosts=..."),
    ("local_multihost.sh", ["--no_ray=yes"], "--no_ray is a switch and takes no value"),
    ("local_multihost.sh", ["--", "--trainer.host_index=1"], "--trainer.host_index is given by this script"),
    ("local_multihost.sh", ["--", "--run.ray_address", "auto"], "--run.ray_address is given by this script"),
    ("slurm/train.sbatch", ["--ray_port=x"], "--ray_port=x is not a whole number"),
    ("slurm/train.sbatch", ["--", "--trainer.launcher=ray"], "--trainer.launcher is given by this script"),
    ("slurm/train.sbatch", [], "submit this file with sbatch"),
    ("slurm/ray_node.sh", ["--head=a", "--role=player"], "--role=player is neither learner nor rollout"),
    ("slurm/ray_node.sh", ["--role=rollout"], "--head is missing"),
    ("slurm/learner.sh", ["--coordinator=a:1"], "--num_hosts= is not a whole number"),
    ("slurm/learner.sh", ["--num_hosts=2", "--coordinator=a:1"], "SLURM_PROCID is not set"),
    ("tpu_vm/create.sh", ["--zone=zone", *TYPE], "--name is missing"),
    ("tpu_vm/create.sh", ["--name=Slice_1", "--zone=zone", *TYPE], "--name=Slice_1 is no name"),
    ("tpu_vm/create.sh", ["--name=slice", *TYPE], "--zone is missing: name the zone of the TPUs, such as"),
    ("tpu_vm/create.sh", [*SLICE, "--type=v6e-16", "--dry_run"], "--runtime_version is missing"),
    ("tpu_vm/create.sh", [*SLICE, *TYPE, "--slices=0", "--dry_run"], "--slices=0 is not a whole number of at least 1"),
    ("tpu_vm/setup.sh", [*SLICE, "--nfs=/share", "--dry_run"], "--nfs=/share is not of the form SERVER:/SHARE"),
    ("tpu_vm/start_ray.sh", [*SLICE, "--rollout_cpus=all", "--dry_run"], "--rollout_cpus=all is not a whole number"),
    ("tpu_vm/run.sh", [*SLICE, "--dry_run", "--", FLAGS[0]], "the trainer's --run.dir is missing after --"),
    ("tpu_vm/logs.sh", [*SLICE, "--dry_run"], "--to is missing"),
    ("tpu_vm/keep_running.sh", [*SLICE, *TYPE, "--dry_run"], "the trainer's --run.dir is missing after --"),
    ("tpu_vm/keep_running.sh", [*SLICE, *TYPE, "--poll_s=0"], "--poll_s=0 is not a whole number of at least 1"),
    ("tpu_vm/host.sh", ["learn"], "unknown command 'learn'"),
    ("tpu_vm/host.sh", ["ray"], "--head is missing"),
]


@pytest.mark.parametrize(("script", "arguments", "said"), REFUSED)
def test_what_is_wrong_is_said_with_its_remedy(script, arguments, said, tmp_path):
    (tmp_path / "gcloud").symlink_to("/bin/false")  # wrong options are found before it is called
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = call(script, *arguments, environment=environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr


@pytest.mark.parametrize("script", [name for name in CALLS if name.startswith("tpu_vm/") and "host" not in name])
def test_without_gcloud_the_scripts_for_tpus_say_how_to_get_it(script, tmp_path):
    for program in ("bash", "dirname", "sed", "basename"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    result = call(script, *CALLS[script], environment={"PATH": str(tmp_path)})
    assert result.returncode == 2
    assert "the program 'gcloud' is not there: install the Google Cloud CLI" in result.stderr
