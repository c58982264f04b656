"""What a rollout worker sees of its environments: a pool that gives whichever are ready.

The vocabulary is EnvPool's asynchronous one (Weng et al. 2022, arXiv:2206.10558): `recv` and `send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec


@dataclass(frozen=True)
class EnvironmentSteps:
    """Environments that are ready for an action, K of them, and what came of their last one.

    Attributes:
      env_id: int32 [K], index within the pool, no index twice.
      obs: name -> [K, ...], the observation to act on.
      first: bool [K], `obs` begins an episode.
      reward, terminated, truncated: float32, bool, bool [K], outcome of the previous action; where there
        was none (the first receipt of an environment) or it was lost (`failed`) they are 0 and False.
      failed: bool [K], the environment broke in the previous action and was restarted: that action has
        no outcome, and `obs` begins an episode of a new instance.
      final_obs: name -> [K, ...], the last observation of an episode where `truncated`; undefined
        elsewhere. None if nothing is truncated in this batch.
      info: per environment, what it said of the step, or of the episode's last step where it ended.
    """

    env_id: np.ndarray
    obs: dict[str, np.ndarray]
    first: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    final_obs: dict[str, np.ndarray] | None
    info: list[dict[str, Any]]


@dataclass(frozen=True)
class PoolCounters:
    """Since the pool was made: failed environment instances by cause, and instances started."""

    starts: int = 0
    failures: int = 0


class EnvPool(Protocol):
    """A fixed number of environments; each is either with the caller (received) or at work (sent)."""

    spec: EnvironmentSpec
    num_envs: int

    @property
    def counters(self) -> PoolCounters:
        """What has happened so far."""
        ...

    def recv(self, timeout_s: float) -> EnvironmentSteps | None:
        """Waits until at least one environment is ready and returns the ready ones.

        The first receipt of every environment is its reset: `first` is true and there is no outcome.

        Args:
          timeout_s: seconds to wait at most.
        Returns:
          The ready environments, or None if none was ready in time.
        Raises:
          EnvironmentFailure: the environments break so often that going on makes no sense.
        """
        ...

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray) -> None:
        """Starts one step in each of the given environments; returns at once.

        Args:
          action: name -> int32 [K, 1].
          env_id: int32 [K], environments received and not sent since.
        """
        ...

    def close(self) -> None:
        """Stops every environment and every process of the pool; harmless if called twice."""
        ...
