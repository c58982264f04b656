"""local_multihost.sh for real: what its hosts are told, how they end, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.scripts import LAUNCH, ROOT, tools_on_path
from tests.rollout.processes import wait_until
from tests.run.programs import Program


class Hosts(Program):
    """local_multihost.sh with tests.launch.fake_host in the trainer's place."""

    def __init__(self, folder: Path, options: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> None:
        self.folder = folder
        super().__init__(
            str(LAUNCH / "local_multihost.sh"), "--program=tests.launch.fake_host", *options, "--",
            f"--folder={folder}", *flags, cwd=ROOT, environment=tools_on_path(),
        )  # fmt: skip

    def wait_until_ready(self, hosts: int = 2) -> None:
        def are_ready() -> bool:
            return self.process.poll() is not None or len(list(self.folder.glob("*.ready"))) == hosts

        assert wait_until(are_ready, 120.0)
        if self.process.poll() is not None:
            self.wait()
            raise AssertionError(f"ended early: {self.stdout}\n{self.stderr}")

    def said(self, index: int) -> dict[str, Any]:
        return json.loads((self.folder / f"{index}.ready").read_text())

    def told_to_stop(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.stopped"))


@pytest.fixture
def started(tmp_path) -> Iterator[list[Program]]:
    """Programs that are killed with all below them, should the test fail."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        for pid in program.alive():
            os.kill(pid, signal.SIGKILL)


def test_sigterm_reaches_every_host_and_the_worst_exit_code_is_told(tmp_path, started):
    hosts = Hosts(tmp_path, ("--no_ray", "--devices=2"), ("--stop_codes=0,3", "--leave_child"))
    started.append(hosts)
    hosts.wait_until_ready()
    variables = hosts.said(1)["variables"]
    assert (variables["JAX_PLATFORMS"], variables["JAX_NUM_CPU_DEVICES"]) == ("cpu", "2")
    addresses = {hosts.said(index)["flags"]["trainer.coordinator"] for index in (0, 1)}
    assert len(addresses) == 1
    assert "run.ray_address" not in hosts.said(0)["flags"]
    hosts.process.send_signal(signal.SIGTERM)
    assert hosts.wait() == 3
    assert hosts.told_to_stop() == ["0.stopped", "1.stopped"]
    assert set(hosts.stdout.splitlines()) == {
        f"[host {index}] {line}" for index in (0, 1) for line in (f"host {index} is ready", "and complains")
    }
    hosts.assert_nothing_left()


def test_ctrl_c_on_a_terminal_stops_the_hosts_in_good_order(tmp_path, started):
    hosts = Hosts(tmp_path, ("--no_ray",))
    started.append(hosts)
    hosts.wait_until_ready()
    os.killpg(hosts.process.pid, signal.SIGINT)  # as a terminal does
    assert hosts.wait() == 0
    assert hosts.told_to_stop() == ["0.stopped", "1.stopped"]
    hosts.assert_nothing_left()


def test_sigterm_while_ray_starts_ends_all_at_once(tmp_path, started):
    hosts = Hosts(tmp_path)
    started.append(hosts)
    assert wait_until(lambda: any("ray start" in command for command in hosts.alive().values()), 60.0)
    hosts.process.send_signal(signal.SIGTERM)
    assert hosts.wait() == 128 + signal.SIGTERM
    assert "told to stop before all hosts were started" in hosts.stderr
    hosts.assert_nothing_left()


def test_a_host_that_does_not_end_in_time_is_killed(tmp_path, started):
    hosts = Hosts(tmp_path, ("--no_ray", "--stop_deadline_s=1"), ("--deaf=1",))
    started.append(hosts)
    hosts.wait_until_ready()
    hosts.process.send_signal(signal.SIGTERM)
    assert hosts.wait() == 128 + signal.SIGKILL
    assert hosts.told_to_stop() == ["0.stopped"]
    assert "host 1 did not end in time and is killed" in hosts.stderr
    hosts.assert_nothing_left()


def test_a_host_that_fails_does_not_leave_the_others_waiting_for_ever(tmp_path, started):
    hosts = Hosts(tmp_path, ("--no_ray", "--hosts=3", "--stop_deadline_s=1"), ("--fail=1:5",))
    started.append(hosts)
    assert hosts.wait() == 128 + signal.SIGKILL
    assert "host 1 ended with code 5" in hosts.stderr
    hosts.assert_nothing_left()


def test_the_hosts_share_a_ray_that_goes_with_them(tmp_path, started):
    hosts = Hosts(tmp_path, ("--minecraft=4",), ("--ray",))
    started.append(hosts)
    hosts.wait_until_ready()
    for index in (0, 1):
        said = hosts.said(index)
        assert said["resources"]["minecraft"] == 4
    folder = Path(said["variables"]["RAY_AUTH_TOKEN_PATH"]).parent
    assert folder.is_dir()
    hosts.process.send_signal(signal.SIGTERM)
    assert hosts.wait() == 0
    hosts.assert_nothing_left()
    assert not folder.exists()


def test_ray_that_does_not_start_is_said_with_its_own_words(tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\necho no room for Ray here\nexit 1\n")
    (tmp_path / "ray").chmod(0o755)
    result = subprocess.run(
        [LAUNCH / "local_multihost.sh"],
        env={**os.environ, "PATH": f"{tmp_path}:{tools_on_path()['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "no room for Ray here" in result.stderr
    assert result.stderr.endswith("error: Ray did not start; it says so above\n")
