"""A world in JAX whose every number can be predicted, for tests of collecting on the device."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp


class Clock(NamedTuple):
    identity: jax.Array  # int32 [], drawn at the reset
    step: jax.Array  # int32 []


class Tick(NamedTuple):
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


class CountingWorld:
    """Ends after 3 + identity % 4 steps: by a termination if the identity is even, else by a truncation.

    The reward of a step is its number plus a tenth of the action; pixel (0, 0) is (identity mod 256, step, 0).
    """

    action_masks: ClassVar[dict[str, Any]] = {}

    def reset(self, key: jax.Array) -> Clock:
        return Clock(jax.random.randint(key, (), 0, 100_000), jnp.int32(0))

    def step(self, state: Clock, action: dict[str, jax.Array]) -> tuple[Clock, Tick]:
        after = Clock(state.identity, state.step + 1)
        ends = after.step >= 3 + state.identity % 4
        even = state.identity % 2 == 0
        return after, Tick(after.step + 0.1 * action["choice"][0], ends & even, ends & ~even, {"success": even})

    def render(self, state: Clock, height: int, width: int) -> jax.Array:
        rows = jnp.arange(height * width * 3).reshape(height, width, 3)
        image = (rows * (state.identity % 251 + 1) + 31 * state.step) % 256
        return image.at[0, 0].set(jnp.stack([state.identity % 256, state.step, jnp.int32(0)])).astype(jnp.uint8)
