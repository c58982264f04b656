"""Task files: YAML that `envs/task_format.py` understands, and those of MineStudio's benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from minestudio_jax.envs.nearest import did_you_mean
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.envs.tasks import Task

FOLDER = Path(__file__).parents[1] / "tasks"

# Keys of MineStudio's benchmark files; beside them, such a file may have any key of a task.
BENCHMARK_COMMANDS = "custom_init_commands"
_BENCHMARK_ONLY = (BENCHMARK_COMMANDS, "defaults", "reference_video")
BENCHMARK_TICKS = 600  # an episode of it


def load_task(task: str) -> Task:
    """A task by its name, or by the path of a file of one's own.

    Args:
      task: name of a file in `minestudio_jax/tasks/`, without its ending; or a path that ends in .yaml. A file of
        MineStudio's benchmark may have no reward.
    Raises:
      ValueError: there is no such task, or its file is wrong.
    """
    path = Path(task).expanduser() if task.endswith((".yaml", ".yml")) else FOLDER / f"{task}.yaml"
    if not path.is_file():
        names = task_names()
        hint = did_you_mean(task, names)
        raise ValueError(f"env.task: there is no {task!r}{hint} (known are {', '.join(names)}, or give a .yaml file)")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"env.task: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"env.task: {path} must hold a mapping with name, text and reward")
    if BENCHMARK_COMMANDS in values:
        return task_from_dict(_from_benchmark(values, path.stem), str(path))
    loaded = task_from_dict(values, str(path))
    if not loaded.reward:
        raise ValueError(f"{path}: reward must be a list of at least one term")
    return loaded


def _from_benchmark(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A benchmark file's contents under a task's keys: a video is judged there, so it pays nothing by itself."""
    ours = {key: value for key, value in values.items() if key not in _BENCHMARK_ONLY}
    commands = values[BENCHMARK_COMMANDS] or []
    return {"name": name, "reward": [], "time_limit": BENCHMARK_TICKS, "commands": commands, **ours}


def task_names() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
