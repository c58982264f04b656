"""Task files: YAML that `envs/tasks.py` understands."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from minestudio_jax.envs.tasks import Task, task_from_dict

FOLDER = Path(__file__).parents[2] / "configs" / "tasks"


def load_task(task: str) -> Task:
    """A task by its name, or by the path of a file of one's own.

    Args:
      task: name of a file in `configs/tasks/`, without its ending; or a path that ends in .yaml.
    Raises:
      ValueError: there is no such task, or its file is wrong.
    """
    path = Path(task).expanduser() if task.endswith((".yaml", ".yml")) else FOLDER / f"{task}.yaml"
    if not path.is_file():
        names = task_names()
        close = difflib.get_close_matches(task, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"env.task: there is no {task!r}; {hint}known are {', '.join(names)}, or give a .yaml file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"env.task: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"env.task: {path} must hold a mapping with name, text and reward")
    return task_from_dict(values, str(path))


def task_names() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
