"""The acting copy of the policy: one fixed-shape jitted call, the memory of all environments in one slab."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy


class Inference:
    """Acts for E environments, up to B at a time.

    Args:
      policy: its functions; on a CPU, its own form for CPUs is what acts.
      num_envs: E.
      batch_size: B; fewer observations are padded to it, so that one program is compiled.
      seed: of the sampling.
      greedy: takes the most probable action instead of sampling.
    """

    def __init__(self, policy: Policy, num_envs: int, batch_size: int, seed: int, greedy: bool = False) -> None:
        prepare: Callable[[Params], Params] = jax.device_put
        if jax.default_backend() == "cpu":
            policy, prepare = policy.for_cpu()
        self._prepare = jax.jit(prepare)
        self._batch_size = batch_size
        self._padding_row = num_envs
        self._initial = jax.device_get(policy.initial_state(1))
        self._slab = policy.initial_state(num_envs + 1)  # the last row takes the padding's memory
        self._key = jax.random.key(seed)
        self._calls = 0
        self._act = jax.jit(partial(_act, policy, greedy), donate_argnums=1)
        self._value = jax.jit(partial(_value, policy))
        self._rows = jax.jit(_rows)

    def prepared(self, params: Params) -> Params:
        """Parameters of the policy in the form in which `act` and `value` take them. Safe from any thread."""
        return self._prepare(params)

    def memory(self, env_id: np.ndarray, first: np.ndarray) -> Any:
        """Memory of the given environments before their next observation: NumPy tree of [K, ...].

        It is the policy's initial memory where `first`.
        """
        parts = [jax.tree.map(lambda leaf: leaf[:0], self._initial)]
        for start in range(0, len(env_id), self._batch_size):
            ids = env_id[start : start + self._batch_size]
            padded = np.concatenate([ids, np.full(self._batch_size - len(ids), self._padding_row, ids.dtype)])
            found = jax.device_get(self._rows(self._slab, padded))
            parts.append(jax.tree.map(lambda leaf, n=ids.size: leaf[:n], found))
        rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        for leaf, initial in zip(jax.tree.leaves(rows), jax.tree.leaves(self._initial), strict=True):
            leaf[first] = initial[0]
        return rows

    def act(
        self, params: Params, obs: dict[str, np.ndarray], first: np.ndarray, env_id: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Chooses actions and moves the environments' memory on.

        Args:
          params: from `prepared`.
          obs: name -> [K, ...].
          first: bool [K].
          env_id: int32 [K], no index twice.
        Returns:
          action component -> int32 [K, 1], log-probability float32 [K], value float32 [K].
        """
        results = []
        for start in range(0, len(env_id), self._batch_size):
            part = slice(start, start + self._batch_size)
            count = len(env_id[part])
            key = jax.random.fold_in(self._key, self._calls)
            self._calls += 1
            self._slab, result = self._act(params, self._slab, *self._padded(obs, first, env_id, part), key)
            results.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], result))
        if len(results) == 1:
            return results[0]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def value(self, params: Params, obs: dict[str, np.ndarray], env_id: np.ndarray) -> np.ndarray:
        """Value float32 [K] of observations that follow the environments' last actions; memory stays as it is."""
        values = []
        first = np.zeros(len(env_id), bool)
        for start in range(0, len(env_id), self._batch_size):
            part = slice(start, start + self._batch_size)
            value = self._value(params, self._slab, *self._padded(obs, first, env_id, part))
            values.append(np.asarray(value)[: len(env_id[part])])
        return np.concatenate(values)

    def _padded(
        self, obs: dict[str, np.ndarray], first: np.ndarray, env_id: np.ndarray, part: slice
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        missing = self._batch_size - len(env_id[part])

        def pad(x: np.ndarray, fill: int) -> np.ndarray:
            if not missing:
                return x[part]
            return np.concatenate([x[part], np.full((missing, *x.shape[1:]), fill, x.dtype)])

        padded_obs = {name: pad(x, 0) for name, x in obs.items()}
        return padded_obs, pad(first, 0), pad(env_id, self._padding_row)


def _act(
    policy: Policy,
    greedy: bool,
    params: Params,
    slab: Any,
    obs: dict[str, jax.Array],
    first: jax.Array,
    env_id: jax.Array,
    key: jax.Array,
) -> tuple[Any, tuple[dict[str, jax.Array], jax.Array, jax.Array]]:
    memory = _rows(slab, env_id)
    output, memory = policy.apply(params, jax.tree.map(lambda x: x[:, None], obs), first[:, None], memory)
    logits = {name: head[:, 0] for name, head in output.logits.items()}
    action = heads.mode(logits) if greedy else heads.sample(key, logits)
    slab = jax.tree.map(lambda all_, rows: all_.at[env_id].set(rows), slab, memory)
    return slab, (action, heads.log_prob(logits, action), output.value[:, 0])


def _value(
    policy: Policy, params: Params, slab: Any, obs: dict[str, jax.Array], first: jax.Array, env_id: jax.Array
) -> jax.Array:
    memory = _rows(slab, env_id)
    output, _ = policy.apply(params, jax.tree.map(lambda x: x[:, None], obs), first[:, None], memory)
    return jnp.squeeze(output.value, axis=1)


def _rows(slab: Any, env_id: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[env_id], slab)
