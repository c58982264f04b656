"""Collecting experience inside jit: worlds in JAX, played by the learner on its own devices.

Each device plays its own worlds with its own pool of fresh ones; nothing crosses between devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minestudio_jax.envs.env import MASK_PREFIX, REWARD_PREFIX
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer.batch import FragmentBatch

_RING_PER_ENV = 2  # fresh worlds kept for each environment
_REFILL = 16  # of them generated at a time


class JaxWorld(Protocol):
    """An environment of pure functions, such as `envs.voxel.World`."""

    def reset(self, key: jax.Array) -> Any: ...

    def step(self, state: Any, action: dict[str, jax.Array]) -> tuple[Any, Any]:
        """State after it, and its reward, terminated, truncated and info.

        The info has "success" if the task can be solved, and "reward/<name>" if there are terms of the reward.
        """
        ...

    def render(self, state: Any, height: int, width: int) -> jax.Array: ...

    @property
    def action_masks(self) -> Mapping[str, np.ndarray]:
        """Component -> which of its choices there are, uint8 [A], always the same; what is missing has all."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceRolloutState:
    """Everything that collecting goes on from. E worlds and P = 2 E fresh ones on each of D devices.

    Attributes:
      worlds: world states [D E].
      image: uint8 [D E, H, W, 3], what is to be acted on.
      first: bool [D E], it begins an episode.
      memory: policy memory, leading axis D E.
      episode_return, discounted_return, episode_length: float32, float32, int32 [D E], of the episode under way.
      fresh: world states [D P], a ring in which the next ones to begin wait.
      used: int32 [D], worlds taken from the ring so far.
      key: uint32 [D, 2], raw PRNG keys.
    """

    worlds: Any
    image: Any
    first: Any
    memory: Any
    episode_return: Any
    discounted_return: Any
    episode_length: Any
    fresh: Any
    used: Any
    key: Any


class Ended(NamedTuple):
    """Episodes that ended, [N, T] each.

    Attributes:
      ended: bool, one ended after this step.
      total_reward, discounted_return, length: its returns and its steps.
      success: bool, it was solved; None if the world does not say.
      reward_terms: name -> float32, what each term of the reward has paid, as far as the world says it.
    """

    ended: jax.Array
    total_reward: jax.Array
    discounted_return: jax.Array
    length: jax.Array
    success: jax.Array | None
    reward_terms: dict[str, jax.Array]


def begin(
    policy: Policy, world: JaxWorld, num_envs: int, image_size: tuple[int, int], key: jax.Array
) -> DeviceRolloutState:
    """The state of one device (D = 1) before its first step.

    Args:
      num_envs: E.
      image_size: height and width, pixels.
      key: raw PRNG key, uint32 [2].
    """
    keys = jax.random.split(jax.random.wrap_key_data(key), (1 + _RING_PER_ENV) * num_envs + 1)
    worlds = _generated(world, keys[:num_envs])
    return DeviceRolloutState(
        worlds=worlds,
        image=jax.vmap(lambda state: world.render(state, *image_size))(worlds),
        first=jnp.ones(num_envs, bool),
        memory=policy.initial_state(num_envs),
        episode_return=jnp.zeros(num_envs, jnp.float32),
        discounted_return=jnp.zeros(num_envs, jnp.float32),
        episode_length=jnp.zeros(num_envs, jnp.int32),
        fresh=_generated(world, keys[num_envs:-1]),
        used=jnp.zeros(1, jnp.int32),
        key=jax.random.key_data(keys[-1])[None],
    )


def make_collect(
    policy: Policy, world: JaxWorld, fragments_per_env: int, fragment_length: int, discount: float
) -> Callable[[Params, DeviceRolloutState], tuple[DeviceRolloutState, FragmentBatch, Ended]]:
    """The function that collects one iteration's fragments on one device.

    Where an episode ends, the world is replaced by the next of the ring, which is refilled once at the end: what is
    generated is what was used. A world is played a second time only if more episodes end in one call than there are
    worlds in the ring, two for each environment.

    Args:
      fragments_per_env: K, consecutive fragments of each world; they lie next to each other in the batch.
      fragment_length: T.
      discount: of the discounted returns that are told.
    Returns:
      `collect(params, state) -> (state, batch of N = E K fragments, episodes that ended)`, pure.
    """

    def collect(params: Params, state: DeviceRolloutState) -> tuple[DeviceRolloutState, FragmentBatch, Ended]:
        key = jax.random.wrap_key_data(state.key[0])
        key, act_key, refill_key = jax.random.split(key, 3)
        before = state.used[0]

        def fragment(carry: DeviceRolloutState, k: jax.Array) -> tuple[DeviceRolloutState, Any]:
            memory = carry.memory
            keys = jax.random.split(jax.random.fold_in(act_key, k), fragment_length)
            carry, steps = lax.scan(
                lambda c, step_key: _step(policy, world, discount, params, c, step_key), carry, keys
            )
            last, _ = policy.apply(params, _seen(world, carry.image[:, None]), carry.first[:, None], carry.memory)
            return carry, (memory, steps, carry.image, carry.first, last.value[:, 0])

        state, (memory, steps, last_image, last_first, last_value) = lax.scan(
            fragment, state, jnp.arange(fragments_per_env)
        )
        num_envs = state.first.shape[0]

        def rows(x: jax.Array) -> jax.Array:
            """[K, T, E, ...] to [E K, T, ...]."""
            return jnp.moveaxis(x, 2, 0).reshape(num_envs * fragments_per_env, fragment_length, *x.shape[3:])

        def row(x: jax.Array) -> jax.Array:
            """[K, E, ...] to [E K, ...]."""
            return jnp.swapaxes(x, 0, 1).reshape(num_envs * fragments_per_env, *x.shape[2:])

        def with_last(x: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.concatenate([rows(x), row(last)[:, None]], axis=1)

        index = jnp.arange(num_envs * fragments_per_env)
        batch = FragmentBatch(
            obs=_seen(world, with_last(steps["image"], last_image)),
            action=jax.tree.map(rows, steps["action"]),
            reward=rows(steps["reward"]),
            terminated=rows(steps["terminated"]),
            truncated=rows(steps["truncated"]),
            truncation_value=rows(steps["truncation_value"]),
            first=with_last(steps["first"], last_first),
            behaviour_logp=rows(steps["logp"]),
            behaviour_value=with_last(steps["value"], last_value),
            version=jnp.zeros((num_envs * fragments_per_env, fragment_length), jnp.int32),
            policy_state=jax.tree.map(row, memory),
            mask=jnp.ones((num_envs * fragments_per_env, fragment_length), jnp.float32),
            continues=index % fragments_per_env != fragments_per_env - 1,
            weight=jnp.ones(num_envs * fragments_per_env, jnp.float32),
        )
        state = dataclasses.replace(
            state,
            fresh=_refilled(world, state.fresh, before, state.used[0], refill_key),
            key=jax.random.key_data(key)[None],
        )
        return state, batch, jax.tree.map(rows, steps["told"])

    return collect


def _step(
    policy: Policy, world: JaxWorld, discount: float, params: Params, state: DeviceRolloutState, key: jax.Array
) -> tuple[DeviceRolloutState, dict[str, Any]]:
    """One step of all worlds of a device."""
    height, width = state.image.shape[1:3]

    def draw(worlds: Any) -> jax.Array:
        return jax.vmap(lambda one: world.render(one, height, width))(worlds)

    output, memory = policy.apply(params, _seen(world, state.image[:, None]), state.first[:, None], state.memory)
    logits = {name: head[:, 0] for name, head in output.logits.items()}
    action = heads.sample(key, logits)
    worlds, timestep = jax.vmap(world.step)(state.worlds, action)
    image = draw(worlds)
    ended = timestep.terminated | timestep.truncated
    cut = timestep.truncated & ~timestep.terminated

    def last_values() -> jax.Array:
        no = jnp.zeros_like(ended)[:, None]
        return jnp.where(cut, policy.apply(params, _seen(world, image[:, None]), no, memory)[0].value[:, 0], 0.0)

    def begun_anew() -> tuple[Any, jax.Array]:
        slots = jax.tree.leaves(state.fresh)[0].shape[0]
        slot = (state.used[0] + jnp.cumsum(ended) - 1) % slots
        new = jax.tree.map(lambda all_: all_[slot], state.fresh)
        replaced = jax.tree.map(
            lambda old, fresh: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), fresh, old), worlds, new
        )
        return replaced, draw(replaced)

    # Most steps end no episode, and pay for none.
    truncation_value = lax.cond(cut.any(), last_values, lambda: jnp.zeros(ended.shape, jnp.float32))
    next_worlds, next_image = lax.cond(ended.any(), begun_anew, lambda: (worlds, image))
    total = state.episode_return + timestep.reward
    weight = jnp.power(discount, state.episode_length.astype(jnp.float32))
    discounted = state.discounted_return + weight * timestep.reward
    length = state.episode_length + 1
    after = dataclasses.replace(
        state,
        worlds=next_worlds,
        image=next_image,
        first=ended,
        memory=memory,
        episode_return=jnp.where(ended, 0.0, total),
        discounted_return=jnp.where(ended, 0.0, discounted),
        episode_length=jnp.where(ended, 0, length),
        used=state.used + jnp.sum(ended, dtype=jnp.int32),
    )
    return after, {
        "image": state.image,
        "first": state.first,
        "action": action,
        "logp": heads.log_prob(logits, action),
        "value": output.value[:, 0],
        "reward": timestep.reward,
        "terminated": timestep.terminated,
        "truncated": timestep.truncated,
        "truncation_value": truncation_value,
        "told": Ended(ended, total, discounted, length, timestep.info.get("success"), _terms(timestep.info)),
    }


def _terms(info: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name.removeprefix(REWARD_PREFIX): paid for name, paid in info.items() if name.startswith(REWARD_PREFIX)}


def _seen(world: JaxWorld, image: jax.Array) -> dict[str, jax.Array]:
    """Observations with these images, [..., H, W, 3]."""
    masks = {
        MASK_PREFIX + name: jnp.broadcast_to(mask, (*image.shape[:-3], *mask.shape))
        for name, mask in world.action_masks.items()
    }
    return {"image": image, **masks}


def _refilled(world: JaxWorld, fresh: Any, before: jax.Array, after: jax.Array, key: jax.Array) -> Any:
    """The ring with new worlds in the slots before..after-1, generated a few at a time, as many as were used."""
    slots = jax.tree.leaves(fresh)[0].shape[0]
    at_once = min(_REFILL, slots)
    count = jnp.minimum(after - before, slots)

    def refill(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        done, ring = carry
        number = done + jnp.arange(at_once)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(number)
        # Those beyond what is needed are written nowhere.
        slot = jnp.where(number < count, (before + number) % slots, slots)
        new = _generated(world, keys)
        ring = jax.tree.map(lambda all_, made: all_.at[slot].set(made, mode="drop"), ring, new)
        return done + at_once, ring

    return lax.while_loop(lambda carry: carry[0] < count, refill, (jnp.int32(0), fresh))[1]


def _generated(world: JaxWorld, keys: jax.Array) -> Any:
    return jax.vmap(world.reset)(keys)
