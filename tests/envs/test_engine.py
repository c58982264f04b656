"""Engines that are really started: their ports, folders, process groups and ends. What they are is a scripted stand-in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from minestudio_jax.envs.engine import Engine, Launch
from minestudio_jax.envs.env import EnvironmentFailure, MisconfiguredEnvironment
from minestudio_jax.envs.ports import PORTS, ClaimedPort
from minestudio_jax.envs.work_folder import WorkFolder
from tests.envs.engines import command, lives
from tests.rollout.processes import is_alive, wait_until

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """Starts engines and closes them."""
    engines = []

    def start(index=0, jar=None, **options):
        options = {"display": "minerl_headless", "work_dir": str(tmp_path / "work"), "start_timeout_s": 20.0, **options}
        engines.append(Engine(Launch(**options), index, lambda: jar or "/no/such.jar"))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
    assert list((tmp_path / "work").glob("*")) == []


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary"


def test_an_engine_listens_in_this_group_and_in_a_folder_of_its_own_and_leaves_nothing(start, diary, capfd, tmp_path):
    template = tmp_path / "template"
    (template / "config").mkdir(parents=True)
    (template / "options.txt").write_text("fov:70")
    engine = start(launch_command=command(diary=diary, child=True), template_dir=str(template))
    (life,) = lives(diary)
    assert (life.port, life.pid) == (engine.port, engine.pid)
    assert os.getpgid(engine.pid) == os.getpgrp()
    assert life.folder.parent == tmp_path / "work"
    assert (life.folder / "options.txt").read_text() == "fov:70"
    assert (life.folder / "config").is_dir()
    socket.create_connection((engine.host, engine.port), 5.0).close()
    assert engine.end() == ""
    engine.close()
    engine.close()
    assert not is_alive(engine.pid)
    assert wait_until(lambda: not is_alive(life.child)), "what it started in another session is left"
    assert not life.folder.exists()
    assert "a line before" in capfd.readouterr().out


def test_two_engines_of_one_index_share_nothing(start, diary):
    first, second = (start(5000, launch_command=command(diary=diary)) for _ in range(2))
    assert first.port != second.port
    assert len({life.folder for life in lives(diary)}) == 2
    first.close()
    assert is_alive(second.pid)
    with closing(ClaimedPort(5000)) as again:
        assert again.number == first.port, "the port of the one that is closed is free again"


def test_a_port_on_which_somebody_listens_is_passed_over():
    with socket.create_server(("", PORTS[100])), closing(ClaimedPort(100)) as claim:
        assert claim.number == PORTS[101]


def test_a_port_is_claimed_before_anybody_listens():
    with closing(ClaimedPort(200)) as first, closing(ClaimedPort(200)) as second:
        assert (first.number, second.number) == (PORTS[200], PORTS[201])


def test_an_engine_dies_with_its_host_and_the_next_one_clears_up(start, diary, tmp_path):
    """Nobody else is there to kill it: no parent, no guard."""
    code = (
        "import sys, time; from minestudio_jax.envs.engine import *\n"
        f"engine = Engine(Launch(launch_command={command(diary=diary)}, display='minerl_headless', "
        f"work_dir={str(tmp_path / 'work')!r}), 0, str)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    host = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    with host:
        assert wait_until(lambda: "ready" in host.stdout.readline(), 20.0)
        (life,) = lives(diary)
        assert is_alive(life.pid)
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert wait_until(lambda: not is_alive(life.pid)), "the engine has outlived its host"
    assert life.folder.exists()
    start(launch_command=command())
    assert not life.folder.exists()


def test_a_folder_in_use_is_nobody_elses_to_remove(tmp_path):
    with closing(WorkFolder(str(tmp_path), 3)) as first, closing(WorkFolder(str(tmp_path), 3)) as second:
        assert Path(first.path).is_dir()
        assert Path(second.path).is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_removed_is_removed_by_the_next_one(tmp_path, monkeypatch):
    """As long as something is left in a folder, so is the lock by which it is known to be nobody's."""
    abandoned = WorkFolder(str(tmp_path))
    (Path(abandoned.path) / "world").mkdir()
    with monkeypatch.context() as stubborn:
        stubborn.setattr("minestudio_jax.envs.work_folder.shutil.rmtree", lambda *args, **kwargs: None)
        abandoned.close()
    assert Path(abandoned.path).is_dir()
    WorkFolder(str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_cannot_be_copied_leaves_no_folder(tmp_path):
    template = tmp_path / "options.txt"
    template.touch()
    with pytest.raises(NotADirectoryError):
        WorkFolder(str(tmp_path / "work"), template=str(template))
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "timeout_s", "said"),
    [
        ("exit", 60.0, ["ended with status 1", "a line before"]),
        ("old_java", 60.0, ["this engine needs Java 8", "option java"]),
        ("hang", 4.0, ["did not listen within start_timeout_s=4", "still runs"]),
    ],
)
def test_an_engine_that_does_not_start_is_told_and_gone(start, diary, fault, timeout_s, said):
    with pytest.raises(EnvironmentFailure) as failure:
        start(launch_command=command(diary=diary, start=fault), start_timeout_s=timeout_s)
    assert not isinstance(failure.value, MisconfiguredEnvironment)
    assert [words for words in said if words not in str(failure.value)] == []
    (life,) = lives(diary)
    assert not is_alive(life.pid)
    assert not life.folder.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"launch_command": []}, ["launch_command=[] must be a list of words"]),
        ({"launch_command": "java -jar engine.jar"}, ["launch_command='java", "must be a list of words"]),
        ({"heap_mib": "4096"}, ["heap_mib='4096' must be a whole number of MiB"]),
        ({"start_timeout_s": 0}, ["start_timeout_s=0 must be a number above 0"]),
        ({"launch_command": ["/no/such/program"]}, ["'/no/such/program'", "launch_command"]),
        ({"jar": __file__, "java": "/no/java"}, ["'/no/java'", "openjdk-8", "option java"]),
        ({}, ["no engine at /no/such.jar", "option jar"]),
        ({"launch_command": [sys.executable], "display": "paper"}, ["display='paper'", "xvfb"]),
    ],
)
def test_what_is_missing_is_named_and_not_tried_again(start, options, said):
    with pytest.raises(MisconfiguredEnvironment) as failure:
        start(**options)
    assert [words for words in said if words not in str(failure.value)] == []


def test_java_gets_heap_jar_and_port(start, tmp_path, diary):
    """A `java` that is a shell script: it writes its arguments down and becomes the scripted engine."""
    java, jar = tmp_path / "java", tmp_path / "mcprec.jar"
    jar.touch()
    words = " ".join(f"'{word}'" for word in command(diary=diary) if "{port}" not in word)
    java.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexec {words} --port="${{4#--envPort=}}"\n')
    java.chmod(0o755)
    engine = start(java=str(java), jar=str(jar), heap_mib=1234)
    assert (tmp_path / "arguments").read_text().split() == ["-Xmx1234m", "-jar", str(jar), f"--envPort={engine.port}"]
    assert lives(diary)[0].pid == engine.pid
