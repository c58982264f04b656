"""What a rollout worker sees of its environments: a pool that gives whichever are ready.

The vocabulary is EnvPool's asynchronous one (Weng et al. 2022, arXiv:2206.10558): `recv` and `send`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec, Observation


@dataclass(frozen=True)
class EnvironmentSteps:
    """Environments that are ready for an action, K of them, and what came of their last one.

    Attributes:
      env_id: int32 [K], index within the pool, no index twice.
      obs: K observations to act on, name -> [...]; good until the next `send` to their environment, so that what
        is to last must be copied, once.
      first: bool [K], `obs` begins an episode.
      reward, terminated, truncated: float32, bool, bool [K], outcome of the previous action; where there
        was none (the first receipt of an environment) or it was lost (`failed`) they are 0 and False.
      failed: bool [K], the environment broke in the previous action and was restarted: that action has
        no outcome, and `obs` begins an episode of a new instance.
      final_obs: K, the last observation of an episode where `truncated`, as good as `obs`; None elsewhere.
      info: per environment, what it said of the step, or of the episode's last step where it ended.
    """

    env_id: np.ndarray
    obs: Sequence[Observation]
    first: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    final_obs: Sequence[Observation | None]
    info: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PoolCounters:
    """What has become of a pool's environment instances since it was made.

    Attributes:
      starts: instances started.
      recycled: replaced as planned, at an episode's end.
      failures: cause -> instances that failed.
    """

    starts: int = 0
    recycled: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_failures(self) -> int:
        """Of all causes."""
        return sum(self.failures.values())


class EnvPool(Protocol):
    """A fixed number of environments; each is either with the caller (received) or at work (sent).

    Attributes:
      spec: of every environment.
      num_envs: how many.
      lockstep: all are always ready together.
    """

    spec: EnvironmentSpec
    num_envs: int
    lockstep: bool

    @property
    def counters(self) -> PoolCounters:
        """What has happened so far."""
        ...

    def recv(
        self, timeout_s: float, max_ready: int | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        """Waits until at least one environment is ready and returns the ready ones.

        The first receipt of every environment is its reset: `first` is true and there is no outcome.

        Args:
          timeout_s: seconds to wait at most for the first one.
          max_ready: how many are returned at most, those that have waited longest; the others stay ready. A pool in
            lockstep returns all of them whatever it says.
          max_wait_s: seconds to wait, when one is ready, for more of them up to `max_ready`.
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
