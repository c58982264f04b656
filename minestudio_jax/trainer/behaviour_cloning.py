"""Behaviour cloning beside PPO: what a demonstrator did is made more probable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.utils.demonstrations import Demonstrations


class BehaviourCloning:
    """The mean of -log pi(a | o) over windows of demonstrations; an AuxiliaryLoss.

    The policy's memory is empty at the beginning of a window.

    Args:
      context_length: trainer.context_length.
      num_devices: the learner's.
      path: of the demonstrations, see `utils.demonstrations`.
      batch_size_per_device: windows for one optimiser step on each device.
      length: steps of a window; 0: context_length.
      burn_in: steps at a window's beginning that fill the memory and are not learnt from.
    Raises:
      ValueError: a number cannot be, there are no demonstrations there, or none is longer than `burn_in`.
    """

    def __init__(
        self,
        *,
        context_length: int,
        num_devices: int,
        path: str,
        batch_size_per_device: int = 4,
        length: int = 0,
        burn_in: int = 0,
    ) -> None:
        self._length = length or context_length
        if batch_size_per_device < 1 or self._length < 1 or not 0 <= burn_in < self._length:
            raise ValueError("batch_size_per_device and length must be at least 1, burn_in from 0 to below length")
        self._count, self._burn_in = batch_size_per_device * num_devices, burn_in
        self._demonstrations = Demonstrations(Path(path).expanduser())
        if self._demonstrations.longest <= burn_in:
            raise ValueError(
                f"burn_in={burn_in} leaves nothing to learn from: the longest sequence in {path} has "
                f"{self._demonstrations.longest} steps"
            )

    def check(self, spec: EnvironmentSpec) -> None:
        """As AuxiliaryLoss.check."""
        self._demonstrations.check(spec)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """As AuxiliaryLoss.draw."""
        windows = self._demonstrations.draw(rng, self._count, self._length)
        windows.mask[:, : self._burn_in] = 0.0
        return vars(windows)

    def loss(self, policy: Policy, params: Params, data: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As AuxiliaryLoss.loss; `accuracy` is the share of steps whose action is the policy's most probable one."""
        first, mask = data["first"], data["mask"]
        output, _ = policy.apply(params, data["obs"], first, policy.initial_state(first.shape[0]))
        count = jnp.maximum(mask.sum(), 1.0)
        same = [heads.mode(output.logits)[name] == action for name, action in data["action"].items()]
        loss = -jnp.sum(mask * heads.log_prob(output.logits, data["action"])) / count
        return loss, {"accuracy": jnp.sum(mask * jnp.all(jnp.stack(same), axis=0)[..., 0]) / count}
