"""A Ray cluster of several nodes on this machine, whose nodes can be lost as machines are: everything at once."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from pathlib import Path

from tests.rollout.processes import free_port, is_alive, wait_until
from tests.run.programs import Program

# Ray gives a silent node up after 15 s at best; here after three. What only takes its time is not given up.
_SOON = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "60",
}
# Else it would depend on what Ray finds in the user's home.
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
_STORE_BYTES = 100 * 2**20


class Node:
    """One node, `ray start`ed as on a machine of its own, with everything that runs on it."""

    def __init__(self, temp_dir: Path, *arguments: str) -> None:
        self._program = Program(
            "ray.scripts.scripts",
            "start",
            "--disable-usage-stats",
            f"--object-store-memory={_STORE_BYTES}",
            "--num-gpus=0",
            f"--temp-dir={temp_dir}",
            *arguments,
            environment=_SOON | _TOKEN,
        )

    def wait_until_there(self) -> None:
        assert self._program.wait(120) == 0, self._program.stdout + self._program.stderr

    def processes(self, words: str) -> list[int]:
        """Those on it whose command line has the words."""
        return sorted(pid for pid, command in self._program.alive().items() if words in command)

    def lose(self) -> None:
        """Power off: nobody on it has the time to notice that anybody else is gone."""
        while pids := self._program.alive():
            for pid in pids:
                _send(pid, signal.SIGSTOP)
            for pid in pids:
                _send(pid, signal.SIGKILL)
            wait_until(lambda pids=pids: not any(map(is_alive, pids)))
        self._program.process.communicate()


class RayNodes:
    """A head without CPUs, where the learner goes, and nodes that come and go.

    Attributes:
      address: for run.ray_address.
      environment: that programs need which join it.
      head: the first node.
    """

    environment = _TOKEN

    def __init__(self) -> None:
        # Not pytest's folder: sockets lie in it, whose names must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.head = Node(
            self._folder,
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={self._port}",
            "--include-dashboard=false",
            "--num-cpus=0",
        )
        self._nodes = [self.head]

    def add(self, num_cpus: int) -> Node:
        """Another node; does not wait for it."""
        folder = self._folder / str(len(self._nodes))
        node = Node(folder, f"--address={self.address}", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}")
        self._nodes.append(node)
        return node

    def close(self) -> None:
        """Loses all nodes, the head last."""
        for node in reversed(self._nodes):
            node.lose()
        shutil.rmtree(self._folder)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
