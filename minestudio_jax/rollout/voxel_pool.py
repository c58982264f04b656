"""The embedded world as an EnvPool: all worlds of a worker stepped and rendered in one jitted call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.env import MASK_PREFIX, ArraySpec, EnvironmentSpec, Observation
from minestudio_jax.envs.voxel import World
from minestudio_jax.envs.voxel.state import State
from minestudio_jax.envs.voxel.statistics import as_dict
from minestudio_jax.rollout.env_pool import EnvironmentSteps, PoolCounters


def voxel_spec(world: World, height: int, width: int) -> EnvironmentSpec:
    """What a VoxelEnvPool of that world will have; arguments as there."""
    masks = {MASK_PREFIX + name: ArraySpec(mask.shape, "uint8") for name, mask in world.action_masks.items()}
    return EnvironmentSpec({"image": ArraySpec((height, width, 3), "uint8"), **masks}, world.action_spec)


class VoxelEnvPool:
    """N embedded worlds in this process; every `recv` returns all of them.

    Args:
      world: what is played.
      num_envs: N.
      seed: of all worlds; episode k of world i is the same whatever the others do.
      height, width: of the image, pixels.
    """

    lockstep = True

    def __init__(self, world: World, num_envs: int, seed: int, height: int, width: int) -> None:
        self.spec = voxel_spec(world, height, width)
        self.num_envs = num_envs
        self.counters = PoolCounters(starts=num_envs)
        self._masks = {MASK_PREFIX + name: mask for name, mask in world.action_masks.items()}
        self._episodes = np.zeros(num_envs, int)
        self._key = jax.random.key(seed)

        def reset_one(states: State, image: jax.Array, env_id: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
            fresh = world.reset(key)
            states = jax.tree.map(lambda all_, one: all_.at[env_id].set(one), states, fresh)
            return states, image.at[env_id].set(world.render(fresh, height, width))

        def step(states: State, action: Any) -> tuple[State, Any, jax.Array]:
            states, timestep = jax.vmap(world.step)(states, action)
            image = jax.vmap(lambda s: world.render(s, height, width))(states)
            return states, timestep, image

        # Only worlds that ended are made anew: generation would cost more than a step if all paid for it.
        self._reset_one = jax.jit(reset_one, donate_argnums=(0, 1))
        self._step = jax.jit(step, donate_argnums=0)
        abstract = jax.eval_shape(world.reset, self._key)
        self._states = jax.tree.map(lambda s: jnp.zeros((num_envs, *s.shape), s.dtype), abstract)
        self._image = jnp.zeros((num_envs, height, width, 3), jnp.uint8)
        for env_id in range(num_envs):
            self._reset(env_id)
        self._sent = True
        self._timestep: Any = None

    def recv(
        self, timeout_s: float, batch_sizes: Sequence[int] | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        """All worlds after the step under way; None if none is under way. Steps take milliseconds: no deadline."""
        del timeout_s, batch_sizes, max_wait_s
        if not self._sent:
            return None
        self._sent = False
        env_id = np.arange(self.num_envs, dtype=np.int32)
        if self._timestep is None:
            no = np.zeros(self.num_envs, bool)
            reward, terminated, truncated = no.astype(np.float32), no, no
        else:
            t = self._timestep
            reward, terminated, truncated = (np.asarray(x) for x in (t.reward, t.terminated, t.truncated))
        ended = terminated | truncated
        final_obs: list[Observation | None] = [None] * self.num_envs
        if truncated.any():
            image = np.array(self._image)  # a copy: the resets below take the memory of this one
            for i in np.flatnonzero(truncated):
                final_obs[i] = {"image": image[i], **self._masks}
        info: list[dict[str, Any]] = [{} for _ in env_id]
        if ended.any():
            said = jax.device_get(self._timestep.info)
            for i in np.flatnonzero(ended):
                info[i] = as_dict({name: leaf[i] for name, leaf in said.items()})
                self._reset(int(i))
        image = np.array(self._image)
        return EnvironmentSteps(
            env_id=env_id,
            obs=[{"image": one, **self._masks} for one in image],
            first=ended if self._timestep is not None else ~ended,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            failed=np.zeros(self.num_envs, bool),
            final_obs=final_obs,
            info=info,
        )

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray, version: int = 0) -> None:
        """Dispatches the step of all worlds and returns while it runs."""
        del version
        if len(env_id) != self.num_envs or (env_id != np.arange(self.num_envs)).any():
            raise ValueError("the embedded worlds step together: send an action for every one of them, in order")
        self._states, self._timestep, self._image = self._step(self._states, action)
        self._sent = True

    def attend(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _reset(self, env_id: int) -> None:
        key = jax.random.fold_in(jax.random.fold_in(self._key, env_id), int(self._episodes[env_id]))
        self._episodes[env_id] += 1
        self._states, self._image = self._reset_one(self._states, self._image, env_id, key)
