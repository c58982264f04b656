"""Tasks of the embedded world: what is rewarded, and the small set of actions that suffices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minestudio_jax.envs.actions import DiscreteActions
from minestudio_jax.envs.voxel import blocks as b


@dataclass(frozen=True)
class Task:
    """
    Attributes:
      name: of the task.
      text: what is asked, in a sentence.
      mine_block: block id -> reward for breaking one.
      actions: the task's own action set.
    """

    name: str
    text: str
    mine_block: Mapping[int, float]
    actions: DiscreteActions


# Degrees per tick; bins of VPT's camera, so that every choice is an agent action too.
_TURN, _TILT = 5.81, 3.22

_GATHERING = DiscreteActions.make(
    {
        "forward": (("forward",), 0.0, 0.0),
        "attack": (("attack",), 0.0, 0.0),
        "forward and attack": (("forward", "attack"), 0.0, 0.0),
        "forward and jump": (("forward", "jump"), 0.0, 0.0),
        "turn left": ((), 0.0, -_TURN),
        "turn right": ((), 0.0, _TURN),
        "look up": ((), -_TILT, 0.0),
        "look down": ((), _TILT, 0.0),
    }
)

TASKS = {
    task.name: task
    for task in (
        Task("chop_tree", "Chop down trees: one point for every log.", {b.LOG: 1.0}, _GATHERING),
        Task(
            "collect_dirt", "Dig up dirt and grass: one point for every block.", {b.DIRT: 1.0, b.GRASS: 1.0}, _GATHERING
        ),
    )
}
