"""From a task to the callbacks that make Minecraft play it."""

from __future__ import annotations

from random import Random
from typing import Any, List, Mapping, Optional

from minestudio_jax.envs.biomes import check_biome, group_of
from minestudio_jax.envs.callbacks.action_mask import ActionMask
from minestudio_jax.envs.callbacks.climbing import Climbing
from minestudio_jax.envs.callbacks.commands import Commands
from minestudio_jax.envs.callbacks.death import Death
from minestudio_jax.envs.callbacks.episode_info import EpisodeInfo
from minestudio_jax.envs.callbacks.fast_reset import FastReset
from minestudio_jax.envs.callbacks.gate_reward import GateReward
from minestudio_jax.envs.callbacks.hard_reset import HardReset
from minestudio_jax.envs.callbacks.inventory import StartInventory
from minestudio_jax.envs.callbacks.record import Record
from minestudio_jax.envs.callbacks.rewards import Rewards
from minestudio_jax.envs.callbacks.success import SuccessCondition
from minestudio_jax.envs.callbacks.summon_mobs import SummonMobs
from minestudio_jax.envs.callbacks.time_and_weather import TimeAndWeather
from minestudio_jax.envs.callbacks.time_limit import TimeLimit
from minestudio_jax.envs.callbacks.voxels import Voxels
from minestudio_jax.envs.minecraft import Callback
from minestudio_jax.envs.task_format import one_of
from minestudio_jax.envs.tasks import CLIMB, GOAL_EVENTS, STRUCTURE, Task, events_of

SETTLE_TICKS = 5  # after the last command
_RECORD = ("folder", "every")


def callbacks_for(
    task: Task,
    seed: int = 0,
    index: int = 0,
    *,
    finds_biomes: bool = True,
    record: Optional[Mapping[str, Any]] = None,
    settle_ticks: int = SETTLE_TICKS,
) -> List[Callback]:
    """Callbacks in the order in which they must be called: those that prepare an episode, and then those that judge it.

    Args:
      task: what is played.
      seed: of what the callbacks draw by chance.
      index: of the environment.
      finds_biomes: see FastReset.
      record: "folder" and "every" of Record; None: no videos.
      settle_ticks: that pass before the episode begins, so that what was commanded shows in the first frame.
    Raises:
      ValueError: the task cannot be played in Minecraft, or `record` is wrong; says why.
    """
    check_for_minecraft(task)
    random = Random(seed)
    callbacks: List[Callback] = []
    if task.spawn:
        callbacks.append(HardReset(task.spawn, random))
    if task.fast_reset is not None:
        callbacks.append(FastReset(task.fast_reset, random, finds_biomes))
    callbacks.append(TimeAndWeather(task.time, task.weather))
    callbacks.append(StartInventory(task.inventory, random))
    callbacks.append(SummonMobs(task.mobs, random))
    callbacks.append(Commands(task.commands, settle_ticks))
    structures = [term for term in task.reward if term.event == STRUCTURE]
    if structures:
        callbacks.append(Voxels())
    if task.mask is not None:
        callbacks.append(ActionMask(task.mask))
    callbacks.append(Death())
    callbacks.extend(GateReward(term) for term in structures)
    if any(CLIMB in objects for _, _, objects in events_of(task)):
        callbacks.append(Climbing())
    callbacks.append(Rewards([term for term in task.reward if term.event != STRUCTURE]))
    if task.success is not None:
        callbacks.append(SuccessCondition(task.success))
    callbacks.append(TimeLimit(task.time_limit))
    callbacks.append(EpisodeInfo())
    if record is not None:
        for key in record:
            one_of(key, _RECORD, "record: key")
        if "folder" not in record:
            raise ValueError(f"record={dict(record)} does not say into which folder")
        callbacks.append(Record(record["folder"], record.get("every", 1), index))
    return callbacks


def check_for_minecraft(task: Task) -> None:
    """Raises ValueError if the task needs something that only the embedded world has."""
    if task.biome:
        try:
            group_of(task.biome)
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from error
    for biome in task.fast_reset.biomes if task.fast_reset is not None else ():
        check_biome(biome, f"task {task.name}: fast_reset: biome")
    for where, event, objects in events_of(task):
        for name in objects:
            if name in GOAL_EVENTS:
                raise ValueError(
                    f"task {task.name}: {where}: Minecraft has no {event} of {name!r}, nor a goal to go to: the "
                    "task is for the embedded world only (leave env.factory empty)"
                )
