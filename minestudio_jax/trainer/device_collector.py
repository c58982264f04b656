"""DeviceCollector: the on-device rollout spread over a mesh, as the trainer uses it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.device_rollout import DeviceRolloutState, Ended, JaxWorld, begin, make_collect


class DeviceCollector:
    """Collects one iteration's fragments in one jitted call.

    Args:
      policy: that acts.
      world: that is played.
      mesh: devices; worlds are split as batches are.
      num_envs: worlds in all, a multiple of a batch's parts.
      fragments_per_env: consecutive fragments of each world in an iteration.
      fragment_length: T.
      image_size: height and width, pixels.
      seed: of worlds and actions.
      discount: of the discounted returns that are told.
    """

    def __init__(
        self,
        policy: Policy,
        world: JaxWorld,
        mesh: Mesh,
        num_envs: int,
        fragments_per_env: int,
        fragment_length: int,
        image_size: tuple[int, int],
        seed: int,
        discount: float = 1.0,
    ) -> None:
        shards = sharding.batch_shards(mesh)
        per_device = num_envs // shards
        self.steps = num_envs * fragments_per_env * fragment_length
        self._mesh = mesh

        def begin_one(key: jax.Array) -> DeviceRolloutState:
            return begin(policy, world, per_device, image_size, key[0])

        self._seed, self._shards = seed, shards
        rows = P(sharding.BATCH_AXES)
        self._begin: Any = jax.jit(self._on_each(begin_one, (rows,), rows), out_shardings=sharding.along_batch(mesh))
        collect = make_collect(policy, world, fragments_per_env, fragment_length, discount)
        self._collect: Any = jax.jit(
            self._on_each(collect, (P(), rows), (rows, rows, rows)),
            donate_argnums=1,
            out_shardings=sharding.along_batch(mesh),  # of arrays without elements as well, which JAX would forget
        )

    def abstract(self) -> Any:
        """Shapes and shardings of the rollout state, for a checkpoint."""
        return sharding.with_sharding(jax.eval_shape(self._begin, self._keys(0)), sharding.along_batch(self._mesh))

    def begin(self, iteration: int = 0) -> DeviceRolloutState:
        """Fresh worlds, other ones for every iteration that a run may be at."""
        state: DeviceRolloutState = self._begin(self._keys(iteration))
        return state

    def compile(self, params: Any) -> None:
        """Compiles for parameters of these shapes and shardings."""
        self._collect = self._collect.lower(params, self.abstract()).compile()

    def collect(self, params: Params, state: DeviceRolloutState) -> tuple[DeviceRolloutState, FragmentBatch, Ended]:
        """Dispatches one iteration's collection and returns; `state` is donated."""
        result: tuple[DeviceRolloutState, FragmentBatch, Ended] = self._collect(params, state)
        return result

    def _keys(self, iteration: int) -> np.ndarray:
        """Raw PRNG keys, one for each part of the mesh."""
        key = jax.random.key(self._seed)
        if iteration:
            key = jax.random.fold_in(key, iteration)
        return np.asarray(jax.random.key_data(jax.random.split(key, self._shards)))

    def _on_each(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
