"""An environment that signs what it shows and gives, so that a fragment can be checked against nothing but itself.

Observation "image" is uint8 [12, 12, 3]. Its first row spells the signature: the seed of this life of the environment, the
episode and the step; the rest are pixels drawn by it. What an action is rewarded with, and when and how an episode ends,
follow from the signature too. NumPy and the standard library only.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec

SIZE = 12
_WORDS = 3  # of 32 bits


def image_of(seed: int, episode: int, step: int) -> np.ndarray:
    signature = np.array([seed, episode, step], np.uint32)
    image = np.random.default_rng(signature).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    image[0].reshape(-1)[: 4 * _WORDS] = signature.view(np.uint8)
    return image


def signature_of(image: np.ndarray) -> tuple[int, int, int]:
    """(seed, episode, step).

    Raises:
      AssertionError: the pixels are not the signature's.
    """
    seed, episode, step = (int(word) for word in image[0].reshape(-1)[: 4 * _WORDS].copy().view(np.uint32))
    assert (image == image_of(seed, episode, step)).all(), f"torn image of {(seed, episode, step)}"
    return seed, episode, step


def reward_of(seed: int, episode: int, step: int, action: int) -> float:
    """Of the action that led to `step`."""
    return ((seed + 31 * episode + 7 * step + action) % 1000) / 1000


def end_of(seed: int, episode: int) -> tuple[int, str]:
    """Steps of an episode and the way it ends."""
    return 5 + (seed + 3 * episode) % 11, ("terminated", "truncated")[(seed + episode) % 2]


class SignedEnv:
    """Misbehaves when it is told to.

    Args:
      step_s: seconds a step takes.
      fault_dir: in which file `<index>` holds what is to go wrong in the next step.
      padding: bytes that every observation has besides.
    """

    def __init__(self, index: int, seed: int, step_s: float, fault_dir: str, padding: int = 1) -> None:
        observation = {"image": ArraySpec((SIZE, SIZE, 3), "uint8"), "padding": ArraySpec((padding,), "uint8")}
        self.spec = EnvironmentSpec(observation, {"choice": 4})
        self._padding = np.zeros(padding, np.uint8)
        self._seed, self._step_s, self._fault = seed, step_s, Path(fault_dir) / str(index)
        self._episode = -1

    def reset(self, seed=None):
        self._episode += 1
        self._step = 0
        return self._observation(image_of(self._seed, self._episode, 0)), {}

    def step(self, action):
        time.sleep(self._step_s)
        self._step += 1
        image = image_of(self._seed, self._episode, self._step)
        reward = reward_of(self._seed, self._episode, self._step, int(action["choice"][0]))
        length, kind = end_of(self._seed, self._episode)
        info = {}
        if self._fault.exists():
            fault = self._fault.read_text()
            self._fault.unlink()
            if fault == "exit":
                os._exit(3)
            if fault == "exception":
                raise RuntimeError("as the test wishes")
            if fault == "nan":
                reward = float("nan")
            if fault == "shape":
                image = image[:3]
            if fault == "error":
                info["error"] = "connection timed out"
        ended = self._step == length
        return self._observation(image), reward, ended and kind == "terminated", ended and kind == "truncated", info

    def close(self):
        pass

    def _observation(self, image):
        return {"image": image, "padding": self._padding}


def make(index, seed, **options):
    return SignedEnv(index, seed, **options)
