"""What a rollout worker sees of its environments: a pool that gives whichever are ready.

The vocabulary is EnvPool's asynchronous one (Weng et al. 2022, arXiv:2206.10558): `recv` and `send`.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec, Observation

# Why an instance broke: it did not start; its process died; a reset or step took longer than its deadline; it answered
# something else than its spec and the contract promise; it raised an exception; its info had an `error`.
FAILURE_CAUSES = ("start", "death", "hang", "garbage", "exception", "error_info")

_TOO_MUCH_PADDING = 0.25  # of a batch


class ToldToStop(Exception):
    """A pool was told to stop before any of its environments had started."""


@dataclass(frozen=True)
class EnvironmentSteps:
    """Environments that are ready for an action, K of them, and what came of their last one.

    Attributes:
      env_id: int32 [K], index within the pool, no index twice.
      obs: K observations to act on, each name -> [...]. They may be views of memory that the environment writes to:
        they stay as they are until the next `send` to that environment; copy what is to last longer.
      first: bool [K], `obs` begins an episode.
      reward, terminated, truncated: float32, bool, bool [K], outcome of the previous action; where there
        was none (the first receipt of an environment) or it was lost (`failed`) they are 0 and False.
      failed: bool [K], the environment broke in the previous action and was restarted: that action has
        no outcome, and `obs` begins an episode of a new instance.
      final_obs: K entries: the last observation of the episode where `truncated`, None elsewhere. Views as `obs`.
      info: per environment, what it said of the last step where an episode ended; empty elsewhere.
    """

    env_id: np.ndarray
    obs: list[Observation]
    first: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    final_obs: list[Observation | None]
    info: list[dict[str, Any]]


@dataclass(frozen=True)
class PoolCounters:
    """What has happened to environment instances since the pool was made.

    Attributes:
      starts: instances started.
      recycled: instances replaced as planned, at the end of an episode.
      failures: broken instances by cause, for each of FAILURE_CAUSES.
    """

    starts: int = 0
    recycled: int = 0
    failures: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURE_CAUSES, 0))

    @property
    def total_failures(self) -> int:
        """Of all causes."""
        return sum(self.failures.values())


class EnvPool(Protocol):
    """A fixed number of environments; each is either with the caller (received) or at work (sent).

    Attributes:
      spec: of every environment.
      num_envs: how many.
      lockstep: all are always received and sent together.
    """

    spec: EnvironmentSpec
    num_envs: int
    lockstep: bool

    @property
    def counters(self) -> PoolCounters:
        """What has happened so far."""
        ...

    def recv(
        self, timeout_s: float, batch_sizes: Sequence[int] | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        """Waits until at least one environment is ready and returns the ready ones.

        The first receipt of every environment is its reset: `first` is true and there is no outcome.

        Args:
          timeout_s: seconds to wait at most for the first one.
          batch_sizes: numbers of environments, ascending, that the caller deals with well: `fitting` says how many of
            the ready ones it returns, those that have been ready longest; the others stay ready. None: all.
          max_wait_s: seconds to wait at most, once one is ready, for more of those that are in a step to get ready.
            It returns before that when the largest batch is, or no other one is in a step.
        Returns:
          The ready environments, or None if none was ready in time.
        Raises:
          EnvironmentFailure: the environments break so often that going on makes no sense.
        """
        ...

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray, version: int = 0) -> None:
        """Starts one step in each of the given environments; returns at once.

        Args:
          action: name -> int32 [K, 1].
          env_id: int32 [K], environments received and not sent since.
          version: of the policy that chose the actions, for environments that want to know; 0: none of a run's.
        """
        ...

    def attend(self) -> None:
        """Does what `recv` does for environments at work, without waiting and without handing any over.

        Whoever does not receive for long calls it now and then: environments start, and hang, meanwhile.

        Raises:
          EnvironmentFailure: as `recv`.
        """
        ...

    def close(self) -> None:
        """Stops every environment and every process of the pool; harmless if called twice."""
        ...


def fitting(ready: int, batch_sizes: Sequence[int]) -> int:
    """How many of `ready` environments to deal with at a time, if each number is padded to the next batch size.

    As many as possible, unless a quarter of the batch or more would be padding and a smaller one can be filled.

    Args:
      ready: 1 or more.
      batch_sizes: ascending.
    """
    ready = min(ready, batch_sizes[-1])
    padded = bisect.bisect_left(batch_sizes, ready)
    if padded and ready <= (1 - _TOO_MUCH_PADDING) * batch_sizes[padded]:
        return batch_sizes[padded - 1]
    return ready
