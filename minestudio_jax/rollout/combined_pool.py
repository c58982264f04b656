"""Several pools as one: a worker whose environments play different tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minestudio_jax.rollout.env_pool import FAILURE_CAUSES, EnvironmentSteps, EnvPool, PoolCounters


class CombinedPool:
    """The environments of several pools, numbered through in the pools' order.

    Args:
      pools: one or more of the same spec, in lockstep, such as VoxelEnvPools.
    """

    lockstep = True

    def __init__(self, pools: Sequence[EnvPool]) -> None:
        self._pools = pools
        self._begins = np.cumsum([0, *(pool.num_envs for pool in pools)]).astype(np.int32)
        self.spec = pools[0].spec
        self.num_envs = int(self._begins[-1])

    @property
    def counters(self) -> PoolCounters:
        """Sums over the pools."""
        parts = [pool.counters for pool in self._pools]
        failures = {cause: sum(p.failures.get(cause, 0) for p in parts) for cause in FAILURE_CAUSES}
        return PoolCounters(sum(p.starts for p in parts), sum(p.recycled for p in parts), failures)

    def recv(
        self, timeout_s: float, batch_sizes: Sequence[int] | None = None, max_wait_s: float = 0.0
    ) -> EnvironmentSteps | None:
        """As EnvPool.recv."""
        received = [
            (begin, steps)
            for begin, pool in zip(self._begins, self._pools, strict=False)
            if (steps := pool.recv(timeout_s, batch_sizes, max_wait_s)) is not None
        ]
        if not received:
            return None
        parts = [steps for _, steps in received]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(steps, name) for steps in parts])

        return EnvironmentSteps(
            env_id=np.concatenate([begin + steps.env_id for begin, steps in received]),
            obs=[obs for steps in parts for obs in steps.obs],
            first=joined("first"),
            reward=joined("reward"),
            terminated=joined("terminated"),
            truncated=joined("truncated"),
            failed=joined("failed"),
            final_obs=[obs for steps in parts for obs in steps.final_obs],
            info=[info for steps in parts for info in steps.info],
        )

    def send(self, action: dict[str, np.ndarray], env_id: np.ndarray, version: int = 0) -> None:
        """As EnvPool.send."""
        owner = np.searchsorted(self._begins, env_id, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            part = {name: component[mine] for name, component in action.items()}
            self._pools[number].send(part, env_id[mine] - self._begins[number], version)

    def attend(self) -> None:
        """As EnvPool.attend."""
        for pool in self._pools:
            pool.attend()

    def close(self) -> None:
        """As EnvPool.close."""
        for pool in self._pools:
            pool.close()
