"""The acting copy of the policy: jitted calls of a few fixed shapes, the memory of all environments in one slab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec, Observation
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy

_BUFFERS = 2  # of each batch size: one is filled while the other is being computed on


class Slab(NamedTuple):
    """What is remembered of each environment; the last row takes the padding's.

    Attributes:
      memory: the policy's, tree of [E + 1, ...].
      acts: int32 [E + 1], how often each has acted; names the random numbers of its next action.
    """

    memory: Any
    acts: jax.Array


class Chosen(NamedTuple):
    """Actions of K environments, in the order in which they were asked for.

    Attributes:
      action: component -> int32 [K, 1].
      logp: float32 [K], log-probability of the action.
      value: float32 [K], of the observation, reward units.
      memory: tree of [M, ...], NumPy: memory before the observation of those M that were asked for.
    """

    action: dict[str, np.ndarray]
    logp: np.ndarray
    value: np.ndarray
    memory: Any


class Inference:
    """Acts for E environments, up to B at a time.

    Programs are compiled for batches of 1, 2, 4, ... B; fewer observations are padded to the next of them. What is
    drawn for an environment depends on the seed, the environment and how often it has acted, not on the batch it is in.

    Args:
      policy: its functions; on a CPU, its own form for CPUs is what acts.
      spec: of the environments.
      num_envs: E.
      batch_size: B.
      seed: of the sampling.
      greedy: takes the most probable action instead of sampling.
      always_full: environments come B at a time, so no smaller program is needed.
    Attributes:
      batch_sizes: of the programs, ascending.
      efficient_sizes: how many environments to act for at a time, for a `recv` of their pool. A row of padding costs a
        CPU as much as a genuine one, so there it is all of `batch_sizes`; an accelerator next to nothing.
    """

    def __init__(
        self,
        policy: Policy,
        spec: EnvironmentSpec,
        num_envs: int,
        batch_size: int,
        seed: int,
        greedy: bool = False,
        always_full: bool = False,
    ) -> None:
        self._prepare: Callable[[Params], Params] = lambda params: params
        if jax.default_backend() == "cpu":
            policy, self._prepare = policy.for_cpu()
        self._spec, self._padding_row = spec, num_envs
        smaller = [] if always_full else [2**n for n in range(batch_size.bit_length()) if 2**n < batch_size]
        self.batch_sizes = (*smaller, batch_size)
        self.efficient_sizes = self.batch_sizes if jax.default_backend() == "cpu" else (batch_size,)
        self._buffers = {size: [_Buffer(spec, size) for _ in range(_BUFFERS)] for size in self.batch_sizes}
        self._initial = jax.device_get(policy.initial_state(1))
        self._nobodys = jax.tree.map(lambda leaf: leaf[:0], self._initial)
        self._slab = Slab(policy.initial_state(num_envs + 1), jnp.zeros(num_envs + 1, jnp.int32))
        self._act = jax.jit(partial(_act, policy, None if greedy else jax.random.key(seed)), donate_argnums=1)
        self._value = jax.jit(partial(_value, policy))
        self._rows = jax.jit(_rows)

    def prepared(self, params: Params) -> Params:
        """Parameters of the policy in the form in which `act` and `value` take them, ready. Safe from any thread."""
        return placed(self._prepare(params))

    def compile(self, params: Params) -> None:
        """Compiles every program now, so that no environment waits for it later."""
        nobody = np.zeros(0, np.int32)
        for size in self.batch_sizes:
            self._dispatch(params, [], np.zeros(0, bool), nobody, size)
            jax.block_until_ready(self._rows(self._slab.memory, self._padded_ids(nobody, size)))
        self._value_of(params, [], nobody)

    def act(
        self,
        params: Params,
        obs: Sequence[Observation],
        first: np.ndarray,
        env_id: np.ndarray,
        remember: np.ndarray | None = None,
    ) -> Callable[[], Chosen]:
        """Begins to choose actions and to move the environments' memory on; does not wait for it.

        Args:
          params: from `prepared`.
          obs: K observations, copied before this returns.
          first: bool [K], the observation begins an episode.
          env_id: int32 [K], no index twice.
          remember: bool [K], whose memory before the observation is wanted; None: nobody's. It is the policy's
            initial memory where `first`.
        Returns:
          Waits for what was chosen and gives it; to be called once.
        """
        remember = np.zeros(len(env_id), bool) if remember is None else remember
        memory = self._look_up(env_id[remember])
        parts = []
        for part in self._parts(len(env_id)):
            ids = env_id[part]
            parts.append((len(ids), self._dispatch(params, obs[part], first[part], ids, self._size_for(len(ids)))))

        def wait() -> Chosen:
            chosen = [jax.tree.map(lambda x, n=n: np.asarray(x)[:n], result) for n, result in parts]
            action, logp, value = chosen[0] if len(chosen) == 1 else jax.tree.map(_joined, *chosen)
            return Chosen(action, logp, value, self._before(memory, first[remember]))

        return wait

    def value(self, params: Params, obs: Sequence[Observation], env_id: np.ndarray) -> np.ndarray:
        """Value float32 [K] of observations that follow the environments' last actions; memory stays as it is."""
        size = self.batch_sizes[0]
        parts = [slice(start, start + size) for start in range(0, len(env_id), size)]
        return np.concatenate([self._value_of(params, obs[part], env_id[part]) for part in parts])

    def memory(self, env_id: np.ndarray, first: np.ndarray) -> Any:
        """Memory of the given environments before their next observation: NumPy tree of [K, ...].

        It is the policy's initial memory where `first`.
        """
        return self._before(self._look_up(env_id), first)

    def _value_of(self, params: Params, obs: Sequence[Observation], env_id: np.ndarray) -> np.ndarray:
        """Of one batch of the smallest size."""
        # Few episodes are cut at once, and each size would cost a program that is compiled beforehand.
        size = self.batch_sizes[0]
        buffer = self._free_buffer(size)
        batch = buffer.filled(obs, np.zeros(len(env_id), bool))
        value = self._value(params, self._slab.memory, *batch, self._padded_ids(env_id, size))
        buffer.in_use_by = value
        return np.asarray(value)[: len(env_id)]

    def _dispatch(
        self, params: Params, obs: Sequence[Observation], first: np.ndarray, env_id: np.ndarray, size: int
    ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """Begins to compute one batch, padded to `size`: action, log-probability and value."""
        buffer = self._free_buffer(size)
        batch = buffer.filled(obs, first)
        self._slab, result = self._act(params, self._slab, *batch, self._padded_ids(env_id, size))
        buffer.in_use_by = result[1]
        return result

    def _parts(self, count: int) -> list[slice]:
        """Cuts `count` rows into batches of at most B."""
        largest = self.batch_sizes[-1]
        return [slice(start, start + largest) for start in range(0, count, largest)]

    def _free_buffer(self, size: int) -> _Buffer:
        """One that nothing is computed on any more."""
        buffers = self._buffers[size]
        buffers.reverse()
        if buffers[0].in_use_by is not None:
            buffers[0].in_use_by.block_until_ready()
        return buffers[0]

    def _size_for(self, count: int) -> int:
        return next(size for size in self.batch_sizes if size >= count)

    def _padded_ids(self, env_id: np.ndarray, size: int) -> np.ndarray:
        padded = np.full(size, self._padding_row, np.int32)
        padded[: len(env_id)] = env_id
        return padded

    def _look_up(self, env_id: np.ndarray) -> list[tuple[int, Any]]:
        """Begins to read rows of the slab, in parts; how many rows of each are genuine, and the rows."""
        parts = []
        for part in self._parts(len(env_id)):
            ids = env_id[part]
            parts.append((len(ids), self._rows(self._slab.memory, self._padded_ids(ids, self._size_for(len(ids))))))
        return parts

    def _before(self, looked_up: list[tuple[int, Any]], first: np.ndarray) -> Any:
        if not looked_up:  # most batches open no fragment
            return self._nobodys
        parts = [jax.tree.map(lambda leaf, n=n: np.asarray(leaf)[:n], rows) for n, rows in looked_up]
        memory = jax.tree.map(_joined, *parts)
        for leaf, initial in zip(jax.tree.leaves(memory), jax.tree.leaves(self._initial), strict=True):
            leaf[first] = initial[0]
        return memory


class _Buffer:
    """A batch of observations in memory that is used again and again.

    Attributes:
      in_use_by: what is computed from it; JAX may read the buffer until that is ready.
    """

    def __init__(self, spec: EnvironmentSpec, size: int) -> None:
        self._obs = {name: np.zeros((size, 1, *a.shape), a.dtype) for name, a in spec.observation.items()}
        self._first = np.zeros((size, 1), bool)
        self.in_use_by: jax.Array | None = None

    def filled(self, obs: Sequence[Observation], first: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observations [B, 1, ...] and first [B, 1] with the given ones in front; what is behind them is no matter."""
        for name, rows in self._obs.items():
            for k, one in enumerate(obs):
                rows[k, 0] = one[name]
        self._first[: len(first), 0] = first
        return self._obs, self._first


def placed(params: Params) -> Params:
    """Parameters on the device, and ready; arrays that are there already stay as they are.

    One array after the other: an act that another thread begins meanwhile waits behind one of them at most.
    """
    return jax.tree.map(lambda leaf: jax.block_until_ready(jax.device_put(leaf)), params)


def _act(
    policy: Policy,
    key: jax.Array | None,
    params: Params,
    slab: Slab,
    obs: dict[str, jax.Array],
    first: jax.Array,
    env_id: jax.Array,
) -> tuple[Slab, tuple[dict[str, jax.Array], jax.Array, jax.Array]]:
    output, memory = policy.apply(params, obs, first, _rows(slab.memory, env_id))
    logits = {name: head[:, 0] for name, head in output.logits.items()}
    if key is None:
        action = heads.mode(logits)
    else:
        keys = jax.vmap(lambda env, acts: jax.random.fold_in(jax.random.fold_in(key, env), acts))(
            env_id, slab.acts[env_id]
        )
        action = jax.vmap(heads.sample)(keys, logits)
    slab = Slab(
        jax.tree.map(lambda all_, rows: all_.at[env_id].set(rows), slab.memory, memory), slab.acts.at[env_id].add(1)
    )
    return slab, (action, heads.log_prob(logits, action), output.value[:, 0])


def _value(
    policy: Policy, params: Params, memory: Any, obs: dict[str, jax.Array], first: jax.Array, env_id: jax.Array
) -> jax.Array:
    output, _ = policy.apply(params, obs, first, _rows(memory, env_id))
    return jnp.squeeze(output.value, axis=1)


def _rows(slab: Any, env_id: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[env_id], slab)


def _joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)
