"""How tests start the scripted engine and play on it, and what it tells of itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.rollout.env_pool import EnvironmentSteps, EnvPool

PROGRAM = Path(__file__).with_name("scripted_engine.py")
HEIGHT, WIDTH = 36, 64  # of its frames, unless a test says otherwise
ATTACK = int(np.flatnonzero(actions.KEY_TABLE[:, actions.BUTTONS.index("attack")])[0])


class Life(NamedTuple):
    """One life of an engine, from its diary."""

    port: int
    pid: int
    child: int
    folder: Path


def command(**arguments: object) -> list[str]:
    """A launch_command: the scripted engine with these arguments of its program."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in arguments.items()]
    return [sys.executable, str(PROGRAM), "--port={port}", *words]


def lives(diary: Path) -> list[Life]:
    return [Life(int(port), int(pid), int(child), Path(folder)) for port, pid, child, folder in told(diary, "start")]


def told(diary: Path, what: str) -> list[list[str]]:
    """The lines of a diary that begin with a word, without it."""
    lines = [line.split(maxsplit=4) for line in diary.read_text().splitlines()] if diary.exists() else []
    return [words for first, *words in lines if first == what]


def seeds(diary: Path) -> list[int]:
    """Of its worlds, in order."""
    return [int(words[0]) for words in told(diary, "mission")]


def act(pool: EnvPool, steps: EnvironmentSteps, buttons: int = 0) -> None:
    """Sends all environments the same action, with the camera at rest."""
    count = len(steps.env_id)
    pool.send(
        {"buttons": np.full((count, 1), buttons, np.int32), "camera": np.full((count, 1), 60, np.int32)}, steps.env_id
    )
