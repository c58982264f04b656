"""Slurm's srun, scontrol and squeue as far as train.sbatch goes by them: nodes are processes of this machine.

FAKE_SLURM names a folder. In it: `state`, the job's; `requeued`, once it was. The nodes are called localhost (the first
learner), learner1, rollout0 and rollout1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GROUPS = (["localhost", "learner1"], ["rollout0", "rollout1"])


def srun(arguments: list[str]) -> int:
    """SIGUSR1 goes to every process of every task, SIGTERM kills them: as with Slurm's own."""
    at = arguments.index("bash")
    options = dict(a.removeprefix("--").partition("=")[::2] for a in arguments[:at])
    nodes = GROUPS[int(options["het-group"])]
    assert int(options["ntasks"]) == int(options["nodes"]) == len(nodes)
    tasks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGKILL if number == signal.SIGTERM else number)

    signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    for rank, node in enumerate(nodes):
        own = {"SLURM_PROCID": str(rank), "SLURMD_NODENAME": node, "SLURM_CPUS_ON_NODE": "2"}
        tasks.append(subprocess.Popen(arguments[at:], env={**os.environ, **own}, start_new_session=True))
    while any(task.poll() is None for task in tasks):
        if "wait" in options and any(
            task.poll() for task in tasks
        ):  # one failed: the time of the others is over at once
            pass_on(signal.SIGTERM, None)
        time.sleep(0.02)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def scontrol(arguments: list[str]) -> int:
    if arguments[0] == "requeue":
        (Path(os.environ["FAKE_SLURM"]) / "requeued").write_text(arguments[1])
    else:
        print("\n".join(GROUPS[0] if arguments[-1] == "learners" else GROUPS[1]))
    return 0


def squeue(arguments: list[str]) -> int:
    state = (Path(os.environ["FAKE_SLURM"]) / "state").read_text()
    print(f"{state}\n{state}")  # a line for each group
    return 0


def ray(arguments: list[str]) -> int:
    """Of Ray, the head's port."""
    import socket

    if "--head" in arguments:
        port = next(a.removeprefix("--port=") for a in arguments if a.startswith("--port="))
        with socket.create_server(("localhost", int(port))) as server:
            while True:
                server.accept()[0].close()
    time.sleep(600)
    return 0


if __name__ == "__main__":
    programs = {"srun": srun, "scontrol": scontrol, "squeue": squeue, "ray": ray}
    sys.exit(programs[sys.argv[1]](sys.argv[2:]))
