"""A task's rewards and its success, from what was counted in an episode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.nearest import did_you_mean
from minestudio_jax.envs.tasks import Task, events_of
from minestudio_jax.envs.voxel import statistics as stats
from minestudio_jax.envs.voxel.state import Statistics

FOR_MINECRAFT = "else the task is for Minecraft only, with env.factory"  # the end of errors


def check_task(task: Task) -> None:
    """Checks that this world knows the objects of a task's rules.

    Raises:
      ValueError: it does not; names the nearest.
    """
    for where, event, objects in events_of(task):
        known = stats.NAMES.get(event, ())
        for name in objects:
            if name not in known:
                raise ValueError(
                    f"task {task.name}: {where}: the embedded world has no {event} of {name!r}"
                    f"{did_you_mean(name, known)} ({FOR_MINECRAFT})"
                )


def paid(task: Task, before: Statistics, after: Statistics, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a tick pays: each term once if any of its objects' counts rose, or as often as they did, up to max_times.

    Args:
      before, after: counts of the episode around the tick.
      times: int32 [terms], how often each has been paid.
    Returns:
      reward of each term, float32 [terms]; `times` after it.
    """
    pays = []
    for number, term in enumerate(task.reward):
        rise = _count(after, term.event, term.objects) - _count(before, term.event, term.objects)
        if term.per == "step":
            rise = jnp.minimum(rise, 1)
        if term.max_times:
            rise = jnp.minimum(rise, term.max_times - times[number])
        pays.append(rise)
    new = jnp.array(pays, jnp.int32)
    return new * amounts(task), times + new


def amounts(task: Task) -> jax.Array:
    """Reward of each term, float32 [terms]."""
    return jnp.array([term.reward for term in task.reward], jnp.float32)


def succeeded(task: Task, statistics: Statistics) -> jax.Array:
    """bool [], the task is solved."""
    if task.success is None:
        return jnp.bool_(False)
    return _count(statistics, task.success.event, task.success.objects) >= task.success.count


def _count(statistics: Statistics, event: str, objects: tuple[str, ...]) -> jax.Array:
    index = np.array([stats.NAMES[event].index(name) for name in objects])
    return jnp.sum(getattr(statistics, event)[index])
