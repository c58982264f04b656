"""How often environments, and what else is started again, may break before going on makes no sense."""

from __future__ import annotations

import collections

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout.env_worker import InstanceFailure, PermanentEnvironmentFailure

_HOUR_S = 3600.0
_FIRST_ATTEMPTS = 3  # starts of each environment before "none ever got ready" is the verdict


class LastHour:
    """Counts what happened within the last hour."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque()

    def add(self, now: float) -> int:
        """Takes note of one more at `now`, a `time.monotonic()`; how many there have been since an hour before."""
        self._times.append(now)
        while self._times[0] < now - _HOUR_S:
            self._times.popleft()
        return len(self._times)


class CrashBudget:
    """Counts the failures of a pool's environments. Instances that are replaced as planned are none.

    Args:
      num_envs: environments of the pool.
      max_per_hour: failures of all of them together; env.max_failures_per_hour.
      factory: env.factory, for the message.
    Attributes:
      ever_ready: one of them has been ready once; to be set by the pool.
    """

    def __init__(self, num_envs: int, max_per_hour: int, factory: str) -> None:
        self._num_envs, self._max_per_hour, self._factory = num_envs, max_per_hour, factory
        self._failures, self._total = LastHour(), 0
        self.ever_ready = False

    def charge(self, failure: InstanceFailure, proven: bool, now: float) -> None:
        """Takes a failure into account.

        Args:
          failure: the last one.
          proven: the environment has been ready once, so that it can be built as it is configured, whatever an
            overloaded machine makes of it.
          now: `time.monotonic()`.
        Raises:
          EnvironmentFailure: it was one too many within an hour.
          PermanentEnvironmentFailure: no restart can heal it, or none of the environments ever got ready.
        """
        if isinstance(failure, PermanentEnvironmentFailure) and not proven:
            raise failure
        self._total += 1
        recent = self._failures.add(now)
        if recent > self._max_per_hour:
            raise EnvironmentFailure(
                f"{recent} environment failures within an hour are more than "
                f"env.max_failures_per_hour={self._max_per_hour}; find the cause in the log, or raise that setting if "
                f"it is expected. The last one: {failure}"
            ) from None
        if not self.ever_ready and self._total >= _FIRST_ATTEMPTS * self._num_envs:
            raise PermanentEnvironmentFailure(
                f"none of {self._num_envs} environments got ready in {self._total} attempts; check "
                f"env.factory={self._factory!r} and env.options. The last failure: {failure}"
            ) from None
