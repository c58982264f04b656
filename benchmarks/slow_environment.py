"""An environment with the pace of Minecraft: it sleeps through a step instead of computing it."""

from __future__ import annotations

import time

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec


class SlowEnvironment:
    """Random images, random rewards, episodes of 100 steps."""

    def __init__(self, seed: int, step_s: float, height: int, width: int) -> None:
        self.spec = EnvironmentSpec({"image": ArraySpec((height, width, 3), "uint8")}, {"choice": 8})
        self._step_s = step_s
        self._random = np.random.default_rng(seed)
        self._images = self._random.integers(0, 255, (16, height, width, 3), np.uint8)
        self._steps = 0

    def reset(self, seed=None):
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        time.sleep(self._step_s)
        self._steps += 1
        return self._observation(), float(self._random.random()), False, self._steps >= 100, {}

    def close(self):
        pass

    def _observation(self):
        return {"image": self._images[self._random.integers(16)]}


def make(index, seed, **options):
    return SlowEnvironment(seed, **options)
