"""An environment with the pace of Minecraft: it sleeps through a step instead of computing it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec

_EPISODE_STEPS = 100


class SlowEnvironment:
    """Random images, random rewards, episodes of 100 steps.

    Args:
      index, seed: as for every factory.
      step_s: seconds a step takes on average.
      height, width: of the image.
      jitter: a step takes between 1 - jitter and 1 + jitter times step_s.
      slow_reset_s, slow_reset_share: this share of the resets takes so many seconds, the others nothing.
      clock_dir: folder in which file `<index>` holds three float64, always up to date: steps done, the seconds that
        steps and resets took, and since when one is under way (time.monotonic(), 0 if none is).
    """

    def __init__(
        self,
        index: int,
        seed: int,
        step_s: float,
        height: int,
        width: int,
        jitter: float = 0.0,
        slow_reset_s: float = 0.0,
        slow_reset_share: float = 0.0,
        clock_dir: str = "",
    ) -> None:
        self.spec = EnvironmentSpec({"image": ArraySpec((height, width, 3), "uint8")}, {"choice": 8})
        self._step_s, self._jitter = step_s, jitter
        self._slow_reset_s, self._slow_reset_share = slow_reset_s, slow_reset_share
        self._random = np.random.default_rng(seed)
        self._images = self._random.integers(0, 255, (16, height, width, 3), np.uint8)
        self._steps = 0
        self._clock = np.zeros(3)
        if clock_dir:
            self._clock = np.memmap(Path(clock_dir) / str(index), np.float64, "w+", shape=(3,))

    def reset(self, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        begin = self._clock[2] = time.monotonic()
        self._steps = 0
        if self._random.random() < self._slow_reset_share:
            time.sleep(self._slow_reset_s)
        self._clock += (0, time.monotonic() - begin, -begin)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        begin = self._clock[2] = time.monotonic()
        time.sleep(self._step_s * (1 + self._jitter * self._random.uniform(-1, 1)))
        self._steps += 1
        self._clock += (1, time.monotonic() - begin, -begin)
        return self._observation(), float(self._random.random()), False, self._steps >= _EPISODE_STEPS, {}

    def close(self) -> None:
        pass

    def _observation(self) -> dict[str, np.ndarray]:
        return {"image": self._images[self._random.integers(16)]}


def make(index: int, seed: int, **options: Any) -> SlowEnvironment:
    return SlowEnvironment(index, seed, **options)
