"""The scripts of launch/ as a user calls them, and what their dry runs say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import flags

from minestudio_jax import config_flags
from minestudio_jax.config_checks import validate

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
FLAGS = ("--flagfile=configs/quickstart.flags", "--run.dir=/shared/run", '--rollout.resources={"minecraft": 4}')
SLICE = ("--name=slice", "--zone=zone")
TYPE = ("--type=v6e-16", "--runtime_version=v2-alpha-tpuv6e")

# Of every script a call that is right, but for --dry_run.
CALLS: dict[str, tuple[str, ...]] = {
    "local_multihost.sh": ("--hosts=2", "--devices=2", "--minecraft=4", "--", *FLAGS),
    "slurm/train.sbatch": ("--minecraft=16", "--", *FLAGS),
    "slurm/ray_node.sh": ("--role=rollout", "--head=node0", "--minecraft=16"),
    "slurm/learner.sh": ("--num_hosts=2", "--coordinator=node0:6380", "--", *FLAGS),
    "tpu_vm/create.sh": (*SLICE, *TYPE, "--spot", "--", "--network=net"),
    "tpu_vm/setup.sh": (*SLICE, "--nfs=10.0.0.2:/share"),
    "tpu_vm/start_ray.sh": (*SLICE, "--minecraft=8", "--rollout_cpus=64"),
    "tpu_vm/run.sh": (*SLICE, "--", *FLAGS),
    "tpu_vm/status.sh": SLICE,
    "tpu_vm/stop.sh": SLICE,
    "tpu_vm/logs.sh": (*SLICE, "--to=logs"),
    "tpu_vm/delete.sh": SLICE,
    "tpu_vm/keep_running.sh": (*SLICE, *TYPE, "--slices=2", "--minecraft=8", "--", *FLAGS),
    "tpu_vm/host.sh": ("learner", "--", *FLAGS),
}


def call(
    script: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({}), timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs a script of launch/ in the clone."""
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def dry_run(script: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> list[list[str]]:
    """The commands that a script says it would run, where nothing of what they need is installed."""
    front, back = (arguments, ()) if "--" not in arguments else _split(arguments)
    # Of the programs that the scripts call none but a shell's usual ones are to be found.
    result = call(script, *front, "--dry_run", *back, environment={"PATH": "/usr/bin:/bin", **environment})
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    at = list(arguments).index("--")
    return arguments[:at], arguments[at:]


def trainer_flags(commands: Sequence[Sequence[str]]) -> list[list[str]]:
    """The flags of every trainer that these commands start, on this machine or by another script of launch/."""
    found = []
    for command in commands:
        if "minestudio_jax.train" in command:
            at = list(command).index("minestudio_jax.train")
            found.append(list(command[at + 1 :]))
            continue
        for words in (command, *(shlex.split(w.split("=", 1)[1]) for w in command if w.startswith("--command="))):
            scripts = [word for word in words if word.endswith(("/host.sh", "/learner.sh"))]
            if scripts and "--" in words:
                name, at = scripts[0].rsplit("launch/", 1)[1], list(words).index(scripts[0])
                found += trainer_flags(dry_run(name, *words[at + 1 :]))
    return found


def parse(arguments: Sequence[str]) -> flags.FlagValues:
    """The trainer's flags as the trainer reads and checks them; any port will do for one that a dry run does not know.

    Raises:
      absl.flags.Error, ConfigError: it does not know one, or not that value, or they do not go together.
    """
    arguments = [re.sub(r":[A-Z_]+PORT\b", ":1024", argument) for argument in arguments]
    values = flags.FlagValues()
    config_flags.define_flags(values)
    here = os.getcwd()
    os.chdir(ROOT)  # flag files are named from the clone on
    try:
        rest = values(["train", *arguments])
    finally:
        os.chdir(here)
    assert rest == ["train"]
    validate(config_flags.from_flags(values))
    return values


def tools_on_path() -> dict[str, str]:
    """PATH with this interpreter's folder first, as in an activated virtual environment."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
