"""The small sets of actions that tasks are played with; every choice is an agent action of VPT's, but for crafting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minestudio_jax.envs.actions import DiscreteActions
from minestudio_jax.envs.voxel import crafting

# Degrees per tick; bins of VPT's camera, so that every choice is an agent action too.
_TURN, _TILT = 5.81, 3.22

_WALKING = {
    "forward": (("forward",), 0.0, 0.0),
    "attack": (("attack",), 0.0, 0.0),
    "forward and attack": (("forward", "attack"), 0.0, 0.0),
    "forward and jump": (("forward", "jump"), 0.0, 0.0),
    "turn left": ((), 0.0, -_TURN),
    "turn right": ((), 0.0, _TURN),
    "look up": ((), -_TILT, 0.0),
    "look down": ((), _TILT, 0.0),
}
_FIGHTING = {
    **_WALKING,
    "run": (("forward", "sprint"), 0.0, 0.0),
    "back and attack": (("back", "attack"), 0.0, 0.0),
}
_BUILDING = {
    **_WALKING,
    "use": (("use",), 0.0, 0.0),
    "jump": (("jump",), 0.0, 0.0),
    "jump and use": (("jump", "use"), 0.0, 0.0),
    "back": (("back",), 0.0, 0.0),
}
_HOLDING = {f"hold item {i}": ((f"hotbar.{i}",), 0.0, 0.0) for i in range(1, 7)}


@dataclass(frozen=True)
class ActionSet:
    """
    Attributes:
      actions: names, keys and camera of each choice.
      craft: int32 [n], the craft action of each choice; 0 is none.
    """

    actions: DiscreteActions
    craft: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        return self.actions.names


def _make(choices: dict[str, tuple[tuple[str, ...], float, float]], craft: bool = False) -> ActionSet:
    recipes = crafting.NAMES[1:] if craft else ()
    made = DiscreteActions.make({**choices, **{f"craft {name}": ((), 0.0, 0.0) for name in recipes}})
    return ActionSet(made, np.array([0] * len(choices) + list(range(1, 1 + len(recipes))), np.int32))


ACTION_SETS = {
    "gathering": _make(_WALKING),
    "fighting": _make(_FIGHTING),
    "building": _make(_BUILDING),
    "crafting": _make({**_BUILDING, **_HOLDING}, craft=True),
}
