"""What an environment is: the contract every simulator adapter and every user's own environment keeps.

Simulator side of the house: NumPy and the standard library only, Python 3.8 syntax, so that it runs
under the old interpreters that Minecraft simulators need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Protocol, Tuple, runtime_checkable

import numpy as np

MASK_PREFIX = "action_mask."  # and an action component's name: the observation that says which of its choices there are
REWARD_PREFIX = "reward/"  # before the name of a term of the reward, in the info of an episode's last step


class EnvironmentFailure(RuntimeError):
    """The simulator broke in `reset` or `step`.

    Neither a termination nor a truncation: the step it happened in never took place, and the episode
    is not reported. The instance that raised it is discarded and built anew.

    Attributes:
      cause: under which it is counted, one of those that `rollout/env_pool.py` lists; where none is known, "exception".
    """

    cause = "exception"


class MisconfiguredEnvironment(EnvironmentFailure):
    """The environment cannot be built as it is configured.

    What a factory raises when building it once more would be of no use: the run ends instead of trying again.
    """


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array of an observation, without batch or time axes.

    Attributes:
      shape: for example `(64, 64, 3)`.
      dtype: NumPy dtype name, for example `"uint8"`.
    """

    shape: Tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a policy has to know of an environment; fixed for the environment's whole life.

    Attributes:
      observation: name -> array spec. Image policies read `"image"`, uint8 [H, W, 3], RGB.
      action: name -> number of choices. Each action component is an int32 [1] array holding an index
        below that number; VPT's agent action is `{"buttons": 8641, "camera": 121}`.
    """

    observation: Mapping[str, ArraySpec]
    action: Mapping[str, int]


Observation = Dict[str, np.ndarray]
Action = Dict[str, np.ndarray]


@runtime_checkable
class Environment(Protocol):
    """Gymnasium's semantics with a fixed, declared spec. One instance serves many episodes.

    A factory `fn(index, seed, **options) -> Environment`, named by `--env.factory=package.module:fn`, builds one;
    `index` tells the environments of a run apart and `seed` is different for each.

    An environment that wants to know whose actions it is given, to say so in what it records, has an attribute
    `policy_version`. Before each step it is set to the version of the policy that chose the action, 0 if it is none of
    a run's.
    """

    spec: EnvironmentSpec

    def reset(self, seed: Optional[int] = None) -> Tuple[Observation, Dict[str, Any]]:
        """Begins an episode.

        Args:
          seed: of this episode; None lets the environment go on with its own stream.
        Returns:
          observation, info.
        """
        ...

    def step(self, action: Action) -> Tuple[Observation, float, bool, bool, Dict[str, Any]]:
        """Applies one action; never modifies it.

        Returns:
          observation after the action (also the last one of an episode), reward, terminated (the task
          itself ended), truncated (a limit outside the task cut it), info. An info with an `error` that is
          not empty says that the simulator broke, as MineRL does; otherwise only that of an episode's last
          step is looked at.
        Raises:
          EnvironmentFailure: the simulator broke.
        """
        ...

    def close(self) -> None:
        """Releases everything; harmless if called twice."""
        ...
