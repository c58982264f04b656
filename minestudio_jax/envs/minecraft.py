"""Minecraft as an environment: agent actions in, frames and a task's rewards out, whatever simulator runs the game.

Simulator side: NumPy and the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Protocol, Tuple

import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import Action, ArraySpec, EnvironmentFailure, EnvironmentSpec, Observation

# Each of actions.BUTTONS -> 0 or 1, "camera" -> float [2], degrees a tick (pitch, down is positive; yaw); and where it
# is wanted "chat" -> a line for the game, such as a command.
Keys = Dict[str, Any]

_BEGINNINGS = 3  # times that an episode is begun, if the game ends it before the first step


@dataclass(frozen=True)
class Frame:
    """What a simulator tells after a tick.

    Attributes:
      image: uint8 [H, W, 3], RGB, top row first.
      done: the simulator has ended the mission.
      statistics: Minecraft's, group -> name without its namespace -> count since the world began; zeros are missing.
      state: what else it tells of the player and what is around him, such as "is_alive", "position" and "inventory".
    """

    image: np.ndarray
    done: bool = False
    statistics: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


class Simulator(Protocol):
    """One instance of the game that waits for its player, tick by tick."""

    frame_shape: Tuple[int, int, int]

    def seed_worlds(self, seed: int) -> None:
        """Worlds that are made from no seed of their own follow from this one, from now on."""
        ...

    def reset(self, seed: Optional[int]) -> Frame:
        """A new world, made from the seed (None: the next that follows from `seed_worlds`); its first frame.

        Raises:
          EnvironmentFailure: the game broke.
        """
        ...

    def step(self, keys: Keys) -> Frame:
        """A tick with these keys; never modifies them. Raises as `reset` does."""
        ...

    def close(self) -> None:
        """Ends the game and everything it started; harmless if called twice."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a step comes to. Callbacks return changed copies.

    Attributes:
      frame: after it.
      reward: so far.
      terminated, truncated: as in the contract of environments, kept apart.
      info: of the step.
      extra: observations besides the image.
      new_world: in a reset: the world has been made for this episode.
      policy_version: in a step: of the policy that chose the action, 0 if it is none of a run's.
    """

    frame: Frame
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Dict[str, Any] = field(default_factory=dict)
    extra: Observation = field(default_factory=dict)
    new_world: bool = False
    policy_version: int = 0


class Callback:
    """Takes part in episodes; a subclass overrides what it needs. Callbacks are called in the order they are given."""

    def observation(self) -> Mapping[str, ArraySpec]:
        """Observations that it adds to every outcome's `extra`."""
        return {}

    def before_reset(self, simulator: Simulator, new_world: bool) -> bool:
        """Before an episode; whether there is to be a new world, `new_world` being what the ones before want."""
        del simulator
        return new_world

    def world_seed(self, seed: Optional[int]) -> Optional[int]:
        """Of the new world that is about to be made; `seed` is what the ones before want, None any."""
        return seed

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        """Makes the world what the episode shall begin in; may step the simulator."""
        del simulator
        return outcome

    def before_step(self, keys: Keys) -> Keys:
        """The keys that are really pressed; a changed copy, never the same dictionary changed."""
        return keys

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        """Judges what came of a step."""
        del simulator
        return outcome

    def close(self) -> None:
        """Releases what it holds, before the simulator is closed."""


class MinecraftEnvironment:
    """A simulator and its callbacks under the contract of `envs/env.py`.

    An episode terminates when the simulator ends the mission (it does when the player dies); callbacks add ends of
    their own. The first episode has a new world, and so has every other one unless a callback keeps it.

    Args:
      simulator: the game; closed with the environment.
      callbacks: in this order.
    Attributes:
      spec: "image" as the simulator draws it, VPT's actions.
      policy_version: as the contract of `envs/env.py` has it.
    """

    def __init__(self, simulator: Simulator, callbacks: Sequence[Callback]) -> None:
        self._simulator, self._callbacks = simulator, list(callbacks)
        self._has_world = False
        self.policy_version = 0
        extra: Dict[str, ArraySpec] = {}
        for callback in self._callbacks:
            extra.update(callback.observation())
        image = ArraySpec(simulator.frame_shape, "uint8")
        self.spec = EnvironmentSpec({"image": image, **extra}, dict(actions.VPT_ACTION_SPEC))

    def reset(self, seed: Optional[int] = None) -> Tuple[Observation, Dict[str, Any]]:
        if seed is not None:  # later episodes follow from it, even if this one's place has a seed of its own
            self._simulator.seed_worlds(seed)
        for _ in range(_BEGINNINGS):
            outcome = self._begin(seed)
            if not outcome.frame.done:
                return self._observation(outcome), outcome.info
            self._has_world = False
        raise EnvironmentFailure(
            f"the game has ended {_BEGINNINGS} episodes before their first step, most likely because the player died "
            "where he was put: look at the task's spawn, fast_reset, mobs and commands"
        )

    def step(self, action: Action) -> Tuple[Observation, float, bool, bool, Dict[str, Any]]:
        keys: Keys = {name: value[0] for name, value in actions.decode({n: a[None] for n, a in action.items()}).items()}
        for callback in self._callbacks:
            keys = callback.before_step(keys)
        frame = self._simulator.step(keys)
        outcome = Outcome(frame, terminated=frame.done, policy_version=self.policy_version)
        for callback in self._callbacks:
            outcome = callback.after_step(self._simulator, outcome)
        if outcome.frame.done:  # the simulator wants a new mission, whoever would have kept the world
            self._has_world = False
        return self._observation(outcome), outcome.reward, outcome.terminated, outcome.truncated, outcome.info

    def close(self) -> None:
        for callback in self._callbacks:
            callback.close()
        self._simulator.close()

    def _begin(self, seed: Optional[int]) -> Outcome:
        """An episode's beginning, in a new world unless a callback keeps the one there is."""
        new_world = True
        for callback in self._callbacks:
            new_world = callback.before_reset(self._simulator, new_world)
        new_world = new_world or not self._has_world or seed is not None
        if new_world:
            for callback in self._callbacks:
                seed = callback.world_seed(seed)
            frame = self._simulator.reset(seed)
            self._has_world = True
        else:
            frame = self._simulator.step(no_keys())
        outcome = Outcome(frame, new_world=new_world)
        for callback in self._callbacks:
            outcome = callback.after_reset(self._simulator, outcome)
        return outcome

    def _observation(self, outcome: Outcome) -> Observation:
        return {"image": outcome.frame.image, **outcome.extra}


def no_keys() -> Keys:
    """Nothing pressed, the camera at rest."""
    return {**dict.fromkeys(actions.BUTTONS, 0), "camera": np.zeros(2)}


def run_commands(simulator: Simulator, commands: Sequence[str], frame: Frame) -> Frame:
    """Has the game carry out commands, a tick each, unless it has ended the mission.

    Returns:
      The frame after the last; `frame` if there is none.
    """
    for command in commands:
        if not frame.done:
            frame = simulator.step({**no_keys(), "chat": command})
    return frame


def wait(simulator: Simulator, ticks: int, frame: Frame) -> Frame:
    """The frame after so many ticks without a key, or the one with which the game has ended the mission."""
    for _ in range(ticks):
        if not frame.done:
            frame = simulator.step(no_keys())
    return frame
