"""Keys that a task rules out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import MASK_PREFIX, ArraySpec
from minestudio_jax.envs.minecraft import Callback, Keys, Outcome, Simulator


class ActionMask(Callback):
    """Takes keys out of the policy's distribution, by observations that say which choices are left.

    Whatever acts without regard to them does not press these keys either.

    Args:
      keys: of `actions.BUTTONS`, and "camera".
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)
        self._masks = {MASK_PREFIX + name: mask for name, mask in actions.action_masks(keys).items()}

    def observation(self) -> Mapping[str, ArraySpec]:
        return {name: ArraySpec(mask.shape, "uint8") for name, mask in self._masks.items()}

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        return self.after_step(simulator, outcome)

    def before_step(self, keys: Keys) -> Keys:
        return {**keys, **{key: np.zeros(2) if key == "camera" else 0 for key in self._keys}}

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        return dataclasses.replace(outcome, extra={**outcome.extra, **self._masks})
