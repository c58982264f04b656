"""Shapes and places of what the update takes, before any of it is there."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.mesh_shape import fragments_per_iteration
from minestudio_jax.policies.policy import Policy
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import FragmentBatch, abstract_batch
from minestudio_jax.trainer.state import TrainState, initial_state


def abstract_state(policy: Policy, config: TrainerConfig, mesh: Mesh) -> TrainState:
    """jax.ShapeDtypeStructs with shardings of the state that learning begins with."""
    shapes = jax.eval_shape(partial(initial_state, policy, config, jax.random.key(0)))
    return sharding.with_sharding(shapes, sharding.shardings(shapes, mesh, policy.tensor_rules()))


def abstract_iteration(
    policy: Policy, config: TrainerConfig, mesh: Mesh, spec: EnvironmentSpec, fragment_length: int
) -> FragmentBatch:
    """The same of the fragments of one iteration."""
    batch = abstract_batch(policy, spec, fragments_per_iteration(config, mesh.size), fragment_length)
    placed: FragmentBatch = sharding.with_sharding(batch, sharding.along_batch(mesh))
    return placed


def shardings_of(tree: Any) -> Any:
    """The shardings alone."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
