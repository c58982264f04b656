"""A task's rewards and its success, from what was counted in an episode."""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.tasks import Task
from minestudio_jax.envs.voxel import statistics as stats
from minestudio_jax.envs.voxel.state import Statistics


def check_task(task: Task) -> None:
    """Checks that this world knows the objects of a task's rules.

    Raises:
      ValueError: it does not; names the nearest.
    """
    rules = [(f"reward {term.name!r}", term.event, term.objects) for term in task.reward]
    if task.success is not None:
        rules.append(("success", task.success.event, task.success.objects))
    for where, event, objects in rules:
        for name in objects:
            if name not in stats.NAMES[event]:
                close = difflib.get_close_matches(name, stats.NAMES[event], n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"task {task.name}: {where}: the embedded world has no {event} of {name!r}{hint}")


def paid(task: Task, before: Statistics, after: Statistics, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a tick pays: each term once if any of its objects' counts rose, up to its max_times.

    Args:
      before, after: counts of the episode around the tick.
      times: int32 [terms], how often each has been paid.
    Returns:
      reward of each term, float32 [terms]; `times` after it.
    """
    pays = []
    for number, term in enumerate(task.reward):
        rise = _count(after, term.event, term.objects) - _count(before, term.event, term.objects)
        pays.append((rise > 0) & ((times[number] < term.max_times) | (term.max_times == 0)))
    paying = jnp.stack(pays)
    amounts = jnp.array([term.reward for term in task.reward], jnp.float32)
    return jnp.where(paying, amounts, 0.0), times + paying


def succeeded(task: Task, statistics: Statistics) -> jax.Array:
    """bool [], the task is solved."""
    if task.success is None:
        return jnp.bool_(False)
    return _count(statistics, task.success.event, task.success.objects) >= task.success.count


def _count(statistics: Statistics, event: str, objects: tuple[str, ...]) -> jax.Array:
    index = np.array([stats.NAMES[event].index(name) for name in objects])
    return jnp.sum(getattr(statistics, event)[index])
