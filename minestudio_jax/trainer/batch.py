"""FragmentBatch: the fragments of one iteration as arrays for the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment
from minestudio_jax.utils.staging import StagingMemory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FragmentBatch:
    """N fragments of T steps, runs of one environment's consecutive fragments next to each other.

    Fields as in SampleFragment with a leading axis N, and:
      mask: float32 [N, T], 1 for genuine steps, 0 for padding behind a failure.
      continues: bool [N], fragment n+1 begins with the step after fragment n's last.
      weight: float32 [N], of its steps in the loss, relative to the others'.
    """

    obs: dict[str, Any]
    action: dict[str, Any]
    reward: Any
    terminated: Any
    truncated: Any
    truncation_value: Any
    first: Any
    behaviour_logp: Any
    behaviour_value: Any
    version: Any
    policy_state: Any
    mask: Any
    continues: Any
    weight: Any

    @property
    def step_weight(self) -> Any:
        """Of every step in the loss, 0 for padding; float32 [N, T]."""
        return self.mask * self.weight[:, None]


@dataclass(frozen=True)
class Share:
    """What one host reads of an iteration's fragments.

    Attributes:
      fragments: this host's, in the order of their rows.
      rows: their places in the batch, int [n] ascending.
      metadata: of all of the iteration's fragments, in the batch's order: by `run_order`.
    """

    fragments: Sequence[SampleFragment]
    rows: np.ndarray
    metadata: Sequence[FragmentMetadata]

    @classmethod
    def whole(cls, fragments: Iterable[SampleFragment]) -> Share:
        """Everything, for the only host."""
        ordered = in_runs(fragments)
        return cls(ordered, np.arange(len(ordered)), [f.metadata for f in ordered])

    @property
    def continues(self) -> np.ndarray:
        """Whether the batch's next row begins with the step after a fragment's last, bool [n]."""
        return _followed(self.metadata, self.fragments[0].length)[self.rows]


def run_order(metadata: FragmentMetadata) -> Any:
    """Sorts fragments so that those of one environment lie next to each other, in the order they were played in."""
    return metadata.source, metadata.start_step


def in_runs(fragments: Iterable[SampleFragment]) -> list[SampleFragment]:
    """The fragments with those of one environment next to each other, in the order in which they were played."""
    return sorted(fragments, key=lambda f: run_order(f.metadata))


def _followed(metadata: Sequence[FragmentMetadata], length: int) -> np.ndarray:
    """Whether a fragment is continued by the one behind it, bool [N]."""
    return np.array([a.continued_by(b, length) for a, b in itertools.pairwise(metadata)] + [False])


def stack_fragments(
    fragments: Sequence[SampleFragment],
    task_weights: Mapping[str, float] = MappingProxyType({}),
    memory: StagingMemory | None = None,
    continues: np.ndarray | None = None,
) -> FragmentBatch:
    """Stacks fragments; NumPy arrays.

    A fragment cut by a failure ends in a truncation whose value is that of its last genuine observation: the
    recursion of the advantages bootstraps there and sees nothing of the padding.

    Args:
      fragments: N of them, all of the same T and spec, `in_runs`.
      task_weights: task -> weight; 1 for others.
      memory: that the arrays are made in; None: in memory of their own.
      continues: as in FragmentBatch, for a part of a batch; None: the fragments are all there is.
    """
    memory = memory or StagingMemory()
    length = fragments[0].length
    metadata = [f.metadata for f in fragments]
    if continues is None:
        continues = _followed(metadata, length)
    valid = np.array([m.valid_steps for m in metadata])

    columns = {
        name: jax.tree.map(lambda *leaves: memory.stacked(leaves), *[getattr(f, name) for f in fragments])
        for name in (
            "obs", "action", "reward", "terminated", "truncated", "truncation_value", "first",
            "behaviour_logp", "behaviour_value", "version", "policy_state",
        )
    }  # fmt: skip
    for n in np.flatnonzero(valid < length):
        last = valid[n] - 1
        if not (columns["terminated"][n, last] or columns["truncated"][n, last]):
            columns["truncated"][n, last] = True
            columns["truncation_value"][n, last] = columns["behaviour_value"][n, last + 1]
    return FragmentBatch(
        **columns,
        mask=(np.arange(length) < valid[:, None]).astype(np.float32),
        continues=continues,
        weight=np.array([task_weights.get(m.task, 1.0) for m in metadata], np.float32),
    )


def abstract_batch(policy: Policy, spec: EnvironmentSpec, num_fragments: int, length: int) -> FragmentBatch:
    """Shapes and dtypes of a batch, to compile the update before the first one arrives."""

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_fragments, *shape), dtype)

    state = jax.eval_shape(lambda: policy.initial_state(1))
    return FragmentBatch(
        obs={k: array(np.dtype(s.dtype), length + 1, *s.shape) for k, s in spec.observation.items()},
        action={k: array(np.int32, length, 1) for k in spec.action},
        reward=array(np.float32, length),
        terminated=array(np.bool_, length),
        truncated=array(np.bool_, length),
        truncation_value=array(np.float32, length),
        first=array(np.bool_, length + 1),
        behaviour_logp=array(np.float32, length),
        behaviour_value=array(np.float32, length + 1),
        version=array(np.int32, length),
        policy_state=jax.tree.map(lambda s: array(s.dtype, *s.shape[1:]), state),
        mask=array(np.float32, length),
        continues=array(np.bool_),
        weight=array(np.float32),
    )


def fragment_bytes(policy: Policy, spec: EnvironmentSpec, length: int) -> int:
    """Bytes that one fragment takes in a batch; as a SampleFragment it takes a few less."""
    leaves = jax.tree.leaves(abstract_batch(policy, spec, 1, length))
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
