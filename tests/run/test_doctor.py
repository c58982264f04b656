"""`doctor`: what keeps a run from starting is named, with its remedy and a true exit code."""

from __future__ import annotations

import dataclasses
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest

from minestudio_jax.config import Config, EnvConfig, PolicyConfig, RolloutConfig, RunConfig
from minestudio_jax.run import host_checkup, simulator_checkup, trial
from minestudio_jax.run.checkup import examine
from minestudio_jax.run.simulator_checkup import SIMULATORS, check_simulator, simulator_of
from tests.in_process_pool import InProcessPool
from tests.run.programs import TINY, Program

_GIB = 2**30


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def image_in(path: Path) -> np.ndarray:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    begin = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[begin - 8 : begin - 4])
    rows = np.frombuffer(zlib.decompress(data[begin : begin + length]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_the_embedded_world_passes_and_a_frame_is_saved(tmp_path):
    frame = tmp_path / "frame.png"
    program = Program("doctor", *TINY, f"--run.dir={tmp_path / 'run'}", f"--frame={frame}")
    assert program.wait() == 0, program.stdout + program.stderr
    program.assert_nothing_left()
    assert program.stdout.rstrip().endswith("A run can start.")
    assert "!!" not in program.stdout
    for subject in ("memory", "disk", "shared memory", "Ray", "JAX", "trial"):
        assert f"  {subject}: " in program.stdout, subject
    assert "50 random steps took" in program.stdout
    image = image_in(frame)
    assert image.shape == (16, 16, 3)
    assert len(np.unique(image)) > 4
    assert not (tmp_path / "run").exists()  # it only looks


def test_a_frame_that_cannot_be_saved_keeps_no_run_from_starting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trial, "make_pool", lambda *_: InProcessPool(1))
    frame = tmp_path / "nowhere" / "frame.png"
    assert examine(Config(run=RunConfig(dir=str(tmp_path / "run"))), frame)
    said = capsys.readouterr()
    assert said.err == ""
    assert f"??  frame: the last frame, 8 x 8, cannot be saved as {frame}: No such file or directory\n" in said.out
    assert "-> give another file with --frame" in said.out
    assert "A run can start" in said.out


def test_what_minecraft_lacks_here_is_named_and_nothing_is_started(tmp_path):
    """An interpreter that has neither MineRL nor an old NumPy, and a Java that is too new."""
    fake_program(tmp_path / "bin", "java", """echo 'openjdk version "17.0.15" 2025-04-15' >&2""")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    arguments = (
        f"--flagfile={Path(__file__).parents[2] / 'configs/minerl_chop_tree.flags'}",
        f"--env.python={sys.executable}",
        "--rollout.num_rollout_workers=1",
        "--rollout.num_envs=1",
        "--rollout.inference_batch_size=1",
        f"--run.dir={tmp_path / 'run'}",
    )
    program = Program("doctor", *arguments, cwd=tmp_path, environment={"PATH": path})
    assert program.wait() == 1, program.stdout + program.stderr
    for words in (
        "!!  policy: policy.vpt_model='weights/foundation-model-1x.model': there is no such file",
        f"!!  simulator: {sys.executable} has no package 'minerl'",
        f"!!  NumPy: it is {np.__version__}, MineRL needs one below 1.24",
        "!!  game: ",
        "is 17.0.15, Minecraft 1.16.5 needs 8 here",
        "no environment is started before that is mended",
        "A run cannot start yet: ",
    ):
        assert words in program.stdout, f"{words}:\n{program.stdout}"
    assert program.stderr == ""


def test_an_environment_that_does_not_start_is_told_with_its_log(tmp_path):
    (tmp_path / "broken.py").write_text("def make(index, seed):\n    raise RuntimeError('no such device')\n")
    arguments = (
        "--env.factory=broken:make",
        "--rollout.num_envs=1",
        "--rollout.inference_batch_size=1",
        f"--run.dir={tmp_path / 'run'}",
    )
    program = Program("doctor", *arguments, cwd=tmp_path)
    assert program.wait() == 1, program.stdout + program.stderr
    assert "!!  trial: " in program.stdout
    assert "no such device" in program.stdout
    assert program.stdout.rstrip().endswith("A run cannot start yet: trial.")


@pytest.mark.parametrize(("version", "verdict"), [("1.8.0_402", "good"), ("17.0.15", "bad"), ("", "bad")])
def test_java_is_asked_for_its_version(tmp_path, monkeypatch, version, verdict):
    if version:
        fake_program(tmp_path, "java", f"""echo 'openjdk version "{version}"' >&2""")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = simulator_checkup._java("java")
    assert finding.verdict == verdict
    assert version in finding.sentence
    assert (verdict == "good") == (finding.remedy == "")


def test_old_minerl_is_told_apart_and_missing_packages_are_listed(monkeypatch):
    packages = {name: {"version": "1", "folder": ""} for name in ("numpy", *SIMULATORS["minerl"].packages)}
    probed = {
        "version": [3, 9, 1],
        "packages": {**packages, "minerl": {"version": "0.4.4", "folder": ""}, "lxml": None},
    }
    monkeypatch.setattr(simulator_checkup, "_probe", lambda interpreter, names: probed)
    env = EnvConfig(factory="minerl", options={"port": 9000})
    found = by_subject(check_simulator(env, SIMULATORS["minerl"]))
    assert found["simulator"].verdict == "bad"
    assert "0.4.4" in found["simulator"].sentence
    assert "lxml" in found["packages"].sentence
    assert found["game"].verdict == "good"  # it runs elsewhere
    assert "Java" not in found


def test_a_launch_command_of_ones_own_needs_neither_java_nor_jar_nor_display_of_ours():
    command = ["./launchClient.sh", "-port", "{port}"]
    env = EnvConfig(factory="minerl", options={"launch_command": command, "display": "minerl_headless"})
    found = by_subject(check_simulator(env, SIMULATORS["minerl"]))
    assert "Java" not in found
    assert (found["game"].verdict, found["display"].verdict) == ("good", "good")
    assert "./launchClient.sh -port {port}" in found["game"].sentence
    ours = EnvConfig(factory="minerl", options={"display": "minerl_headless", "port": 0, "java": "/no/java"})
    found = by_subject(check_simulator(ours, SIMULATORS["minerl"]))
    assert (found["game"].verdict, found["Java"].verdict) == ("bad", "bad")


def test_an_interpreter_that_does_not_run_is_named():
    env = EnvConfig(factory="minestudio", python="/nowhere/python", options={"port": 9000})
    found = by_subject(check_simulator(env, SIMULATORS["minestudio"]))
    assert found["interpreter"].verdict == "bad"
    assert "/nowhere/python" in found["interpreter"].sentence


def test_simulators_are_known_by_their_factories():
    for factory in ("minerl", "minestudio_jax.envs.minerl:make"):
        assert simulator_of(EnvConfig(factory=factory)) is SIMULATORS["minerl"]
    for factory in ("my.own:make", "my.minerl:make", "my.minestudio:make"):
        assert simulator_of(EnvConfig(factory=factory)) is None
    assert simulator_of(EnvConfig()) is None
    client = simulator_of(EnvConfig(factory="minerl", options={"client": "minestudio"}))
    assert client.name == "minestudio"
    assert "torch" not in client.packages


def test_an_instances_memory_follows_its_heap():
    simulator = SIMULATORS["minerl"]
    assert simulator.instance_bytes(EnvConfig()) == 4 * _GIB + _GIB // 2 + _GIB // 4
    assert simulator.instance_bytes(EnvConfig(options={"heap_mib": 1024})) == _GIB + _GIB // 2 + _GIB // 4
    assert simulator.instance_bytes(EnvConfig(options={"port": 9000})) == _GIB // 4
    client = EnvConfig(
        factory="minerl", options={"client": "minestudio"}
    )  # the engine is MineStudio's, and so its heap
    assert simulator_of(client).instance_bytes(client) == 2 * _GIB + _GIB // 2 + _GIB // 4
    for options in ({"port": 0}, {"heap_mib": "much"}):  # of which the factory says what is wrong
        assert simulator.instance_bytes(EnvConfig(options=options)) == simulator.instance_bytes(EnvConfig())


def test_weights_that_are_there_are_good(tmp_path):
    (tmp_path / "1x.weights").touch()
    policy = PolicyConfig(network="vpt", vpt_weights=str(tmp_path / "1x.weights"))
    config = Config(run=RunConfig(dir=str(tmp_path / "run")), policy=policy)
    assert by_subject(host_checkup.check_host(config, 2**20))["policy"].verdict == "good"


def test_too_many_instances_for_the_memory_are_refused_with_how_many_fit(monkeypatch, tmp_path):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(host_checkup.psutil, "virtual_memory", lambda: memory._replace(available=10 * _GIB))
    config = Config(
        run=RunConfig(dir=str(tmp_path / "run")),
        env=EnvConfig(factory="minerl"),
        rollout=RolloutConfig(num_envs=4),
    )
    found = by_subject(host_checkup.check_host(config, 4 * _GIB))
    assert found["memory"].verdict == "bad"
    assert "2 environments fit here" in found["memory"].remedy
    two = dataclasses.replace(config, rollout=RolloutConfig(num_envs=2))
    assert by_subject(host_checkup.check_host(two, 4 * _GIB))["memory"].verdict == "good"


def test_a_full_disk_and_a_dead_cluster_are_told(monkeypatch, tmp_path):
    usage = host_checkup.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(host_checkup.shutil, "disk_usage", lambda path: usage._replace(free=_GIB // 2))
    config = Config(run=RunConfig(dir=str(tmp_path / "run"), ray_address="127.0.0.1:1"))
    found = by_subject(host_checkup.check_host(config, 2**20))
    assert found["disk"].verdict == "doubtful"
    assert found["shared memory"].verdict == "doubtful"
    assert found["Ray"].verdict == "bad"
    assert "127.0.0.1:1" in found["Ray"].sentence
