"""The run directory: everything a run leaves behind, and the lock that keeps two runs apart.

config.json, metrics.jsonl, episodes.jsonl, checkpoints/, versions/, logs/ and run.lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run import run_lock
from minestudio_jax.utils.seeding import with_derived_seed

_OF_ONE_START = ("run.restart", "trainer.coordinator", "trainer.host_index")  # settings that may change every time
_MARK = "logs/mark"
_MARK_DEADLINE_S = 20.0


@contextlib.contextmanager
def _unwritable_is_a_wrong_setting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"run.dir={str(path)!r} cannot be written ({error.strerror}): name a directory of your own with --run.dir"
        ) from error


def _refuse_foreign(path: Path) -> None:
    """Raises ConfigError if a path is no directory, or holds what is not a run's."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run.dir={str(path)!r} is a file: name a directory")
    if path.is_dir() and any(path.iterdir()) and not (path / run_lock.NAME).exists():
        raise ConfigError(f"run.dir={str(path)!r} holds files that are not a run's: name an empty or a new directory")


def refuse_unusable(path: Path) -> None:
    """Raises ConfigError if it can be told beforehand that a run cannot have this directory."""
    with _unwritable_is_a_wrong_setting(path):
        _refuse_foreign(path)
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if (path / run_lock.NAME).exists():
            run_lock.hold(path).close()


class RunDirectory:
    """Opens (or makes) the directory of a run and holds it until `close`.

    Args:
      config: validated settings; `run.dir` is absolute.
    Raises:
      ConfigError: the directory cannot be written, belongs to something else, or another process runs in it.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.dir)
        with _unwritable_is_a_wrong_setting(self.path):
            if config.run.restart:
                self._move_aside()
            _refuse_foreign(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            self._lock = run_lock.hold(self.path)
            try:
                self.changed_settings = self._write_config(config)
            except BaseException:
                self._lock.close()
                raise

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes.jsonl"

    @property
    def compiled(self) -> Path:
        return self.path / "compiled"

    @property
    def last_checkpoint(self) -> int | None:
        """Iteration after which the run continues; None if it begins."""
        return last_checkpoint(self.path)

    def going_on(self, config: Config) -> Config:
        """The settings with which a run collects: if it goes on, in other worlds than before its checkpoint."""
        last = self.last_checkpoint
        return config if last is None else with_derived_seed(config, "continued", last)

    def mark(self) -> str:
        """Leaves a mark of this process by which other hosts know the directory: see `sees_mark`."""
        mark = uuid.uuid4().hex
        write_atomically(self.path / _MARK, mark)
        return mark

    def close(self) -> None:
        self._lock.close()

    def _move_aside(self) -> None:
        if not self.path.exists():
            return
        _refuse_foreign(self.path)
        lock = run_lock.hold(self.path)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.before-{stamp}")
        count = 1
        while aside.exists():
            count += 1
            aside = self.path.with_name(f"{self.path.name}.before-{stamp}-{count}")
        self.path.rename(aside)
        lock.close()

    def _write_config(self, config: Config) -> list[str]:
        """Writes config.json; returns the settings in which it differs from the one that was there."""
        path, new = self.path / "config.json", config.to_dict()
        changed = []
        if path.exists():
            old = json.loads(path.read_text())
            changed = [
                f"{section}.{key}: {old.get(section, {}).get(key)!r} -> {value!r}"
                for section, values in new.items()
                for key, value in values.items()
                if old.get(section, {}).get(key) != value and f"{section}.{key}" not in _OF_ONE_START
            ]
        write_atomically(path, json.dumps(new, indent=2) + "\n")
        return changed


def last_checkpoint(run_dir: Path) -> int | None:
    """Iteration after which the run of a directory continues, 0 if that was before its first; None if it begins."""
    names = (entry.name for entry in (run_dir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=None)


def sees_mark(run_dir: Path, mark: str) -> bool:
    """Whether this is the directory in which the first host has left a mark; shared file systems may show it late."""
    give_up = time.monotonic() + _MARK_DEADLINE_S
    while True:
        with contextlib.suppress(OSError):
            if (run_dir / _MARK).read_text() == mark:
                return True
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old or the new one whole."""
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def read_config(run_dir: Path) -> Config:
    """The settings a run was last started with.

    Raises:
      ConfigError: there is no run.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"run.dir={str(run_dir)!r} holds no run (no config.json): train one first")
    values: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return Config.from_dict(values)
