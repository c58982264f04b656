"""Small worlds whose best policy is known, for tests of learning as a whole. Images are 8x8 of one colour."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from tests.trainer.counting_world import Tick

# Colours, not shades: a layer norm makes shades of one image nearly the same.
_DARK, _SIGN, _JUNCTION = (0, 0, 0), (200, 200, 0), (0, 200, 0)
_LEFT, _RIGHT = (200, 0, 0), (0, 0, 200)


def _flat(colour: Any, height: int, width: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(colour, jnp.uint8), (height, width, 3))


def _choose(condition: jax.Array, this: Any, other: Any) -> jax.Array:
    return jnp.where(condition, jnp.asarray(this), jnp.asarray(other))


class Bandit:
    """One step an episode; arm a pays 1 with probability `means[a]`, and the last one is the best."""

    means = (0.2, 0.5, 0.1, 0.6, 0.9)
    action_masks: ClassVar[dict[str, Any]] = {}

    def reset(self, key: jax.Array) -> jax.Array:
        return jax.random.key_data(key)

    def step(self, state: jax.Array, action: dict[str, jax.Array]) -> tuple[jax.Array, Tick]:
        chance = jnp.asarray(self.means)[action["choice"][0]]
        pays = jax.random.bernoulli(jax.random.wrap_key_data(state), chance)
        return state, Tick(pays.astype(jnp.float32), jnp.bool_(True), jnp.bool_(False), {})

    def render(self, state: jax.Array, height: int, width: int) -> jax.Array:
        return _flat(_DARK, height, width)


class Walk(NamedTuple):
    side: jax.Array  # int32 [], the way that is right
    step: jax.Array  # int32 []


class TMaze:
    """A sign, a dark corridor, a junction: the way that the sign showed pays 1, the other one -1.

    No policy without memory gets more than 0 on average.
    """

    corridor = 3
    action_masks: ClassVar[dict[str, Any]] = {}

    def reset(self, key: jax.Array) -> Walk:
        return Walk(jax.random.randint(key, (), 0, 2), jnp.int32(0))

    def step(self, state: Walk, action: dict[str, jax.Array]) -> tuple[Walk, Tick]:
        there = state.step > self.corridor
        reward = jnp.where(action["choice"][0] == state.side, 1.0, -1.0)
        return Walk(state.side, state.step + 1), Tick(jnp.where(there, reward, 0.0), there, jnp.bool_(False), {})

    def render(self, state: Walk, height: int, width: int) -> jax.Array:
        sign = _choose(state.side == 0, _LEFT, _RIGHT)
        behind = _choose(state.step > self.corridor, _JUNCTION, _DARK)
        colour = _choose(state.step == 0, sign, behind)
        return _flat(colour, height, width)


class Wages:
    """Take 1 and leave (action 0), or a job (action 1): 0.2 now and on every later step, whatever one does then.

    After four steps the day is over. With gamma = 0.9 the job for ever is worth 2, so take it; but if the day's end were
    the end of everything, it would be worth 0.69, so leave.

    Args:
      truncates: whether the end of the day is a truncation, as it should be, or a termination.
    """

    discount = 0.9
    action_masks: ClassVar[dict[str, Any]] = {}

    def __init__(self, truncates: bool) -> None:
        self._truncates = truncates

    def reset(self, key: jax.Array) -> jax.Array:
        return jnp.int32(0)

    def step(self, state: jax.Array, action: dict[str, jax.Array]) -> tuple[jax.Array, Tick]:
        leaves = (state == 0) & (action["choice"][0] == 0)
        over = state >= 3
        truncated = over & self._truncates
        return state + 1, Tick(jnp.where(leaves, 1.0, 0.2), leaves | (over & ~truncated), truncated, {})

    def render(self, state: jax.Array, height: int, width: int) -> jax.Array:
        return _flat(_choose(state == 0, _SIGN, _DARK), height, width)
