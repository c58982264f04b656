"""A pool of scripted environments in this process, for tests of what stands behind a pool.

Observation "image" is uint8 [8, 8, 3]: pixel [0, 0] is (environment, episode mod 256, step mod 256), the rest follows
from them, so a test can tell which step of which episode a row is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.rollout.env_pool import EnvironmentSteps, PoolCounters, fitting

SPEC = EnvironmentSpec({"image": ArraySpec((8, 8, 3), "uint8")}, {"choice": 4})


def signed_image(env_id: int, episode: int, step: int) -> np.ndarray:
    image = np.random.default_rng([env_id, episode, step]).integers(0, 255, (8, 8, 3), np.uint8)
    image[0, 0] = (env_id, episode % 256, step % 256)
    return image


class InProcessPool:
    """Environments whose episodes end or fail on schedule.

    Args:
      num_envs: how many.
      ends: (env, episode, step after the action) -> "", "terminated", "truncated" or "failed".
      reward: (env, episode, step, action) -> reward.
      ready: how many environments a `recv` returns at most; they take turns.
    """

    lockstep = False

    def __init__(
        self,
        num_envs: int,
        ends: Callable[[int, int, int], str] = lambda env, episode, step: "",
        reward: Callable[[int, int, int, int], float] = lambda env, episode, step, action: 1.0,
        ready: int | None = None,
    ) -> None:
        self.spec, self.num_envs, self.counters = SPEC, num_envs, PoolCounters()
        self._ends, self._reward, self._ready = ends, reward, ready or num_envs
        self._episode = [0] * num_envs
        self._step = [0] * num_envs
        self._waiting = [(i, 0.0, "", None) for i in range(num_envs)]
        self.emitted: list[tuple[int, int, int, int, float, str]] = []
        self.versions: list[int] = []  # of the policies that acted, a send each

    def recv(
        self, timeout_s: float, batch_sizes: Sequence[int] | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        del timeout_s, max_wait_s
        if not self._waiting:
            return None
        ready = fitting(min(len(self._waiting), self._ready), batch_sizes or (self.num_envs,))
        batch, self._waiting = self._waiting[:ready], self._waiting[ready:]
        ids = np.array([b[0] for b in batch], np.int32)
        outcome = np.array([b[2] for b in batch])
        return EnvironmentSteps(
            env_id=ids,
            obs=[{"image": signed_image(i, self._episode[i], self._step[i])} for i in ids],
            first=np.array([self._step[i] == 0 for i in ids]),
            reward=np.array([b[1] for b in batch], np.float32),
            terminated=outcome == "terminated",
            truncated=outcome == "truncated",
            failed=outcome == "failed",
            final_obs=[None if b[3] is None else {"image": b[3]} for b in batch],
            info=[{} if b[2] == "truncated" else {"success": b[2] == "terminated"} for b in batch],
        )

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray, version: int = 0) -> None:
        self.versions.append(version)
        for choice, i in zip(action["choice"][:, 0], env_id, strict=True):
            i = int(i)
            episode, step = self._episode[i], self._step[i] + 1
            outcome = self._ends(i, episode, step)
            reward = 0.0 if outcome == "failed" else self._reward(i, episode, step, int(choice))
            self.emitted.append((i, episode, step, int(choice), reward, outcome))
            final = signed_image(i, episode, step) if outcome == "truncated" else None
            if outcome:
                self._episode[i], self._step[i] = episode + 1, 0
            else:
                self._step[i] = step
            if outcome == "failed":
                self.counters = PoolCounters(failures={"death": self.counters.total_failures + 1})
            self._waiting.append((i, reward, outcome, final))

    def attend(self) -> None:
        pass

    def close(self) -> None:
        pass
