"""How tests start the scripted engine, and what it tells of itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(__file__).with_name("scripted_engine.py")


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
