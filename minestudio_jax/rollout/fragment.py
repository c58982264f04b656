"""SampleFragment: what crosses from the experience side to the learner. NumPy arrays only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

# Worker, its life, environment, number of the fragment: one fragment of a session, and no other.
FragmentId = tuple[int, int, int, int]


@dataclass(frozen=True)
class FragmentMetadata:
    """Where a fragment comes from and which policy versions acted in it.

    Attributes:
      worker_id: rollout worker.
      worker_life: how many times that worker had been restarted.
      env_id: environment within the worker.
      fragment_index: number of the fragment within its environment, counted over all the worker's fragments.
      start_step: number of the first step within the environment; a step lost to a failure uses up a number.
      valid_steps: genuine steps, 1..T; fewer than T only where a failure cut the fragment.
      session_id: the life of the trainer whose policy acted.
      version_first, version_last: policy versions of the first and last genuine step, the oldest and the newest.
      task: label of the task.
      num_bytes: of the fragment's arrays; 0 before it is sent.
    """

    worker_id: int
    worker_life: int
    env_id: int
    fragment_index: int
    start_step: int
    valid_steps: int
    session_id: str
    version_first: int
    version_last: int
    task: str
    num_bytes: int = 0

    @property
    def id(self) -> FragmentId:
        """Tells it from every other fragment of its session."""
        return (*self.source, self.fragment_index)

    @property
    def source(self) -> tuple[int, int, int]:
        """The one life of one environment; steps are counted within it."""
        return (self.worker_id, self.worker_life, self.env_id)

    def continued_by(self, other: FragmentMetadata, fragment_length: int) -> bool:
        """Whether `other` begins with the very step after this fragment's last."""
        return (
            self.source == other.source
            and self.session_id == other.session_id
            and self.valid_steps == fragment_length
            and other.start_step == self.start_step + fragment_length
        )


@dataclass(frozen=True)
class SampleFragment:
    """T consecutive steps of one environment; episodes may begin and end anywhere inside.

    Rows from `metadata.valid_steps` on are padding (zeros), except the observation, first flag and value at row
    `valid_steps`, which are genuine: they serve as the bootstrap.

    Attributes:
      obs: name -> [T+1, ...]; row T is the observation after the last action.
      action: component -> int32 [T, 1].
      reward: float32 [T], of action t.
      terminated, truncated: bool [T], after action t.
      truncation_value: float32 [T], value of the episode's last observation under the acting policy where
        truncated, else 0.
      first: bool [T+1], obs t begins an episode.
      behaviour_logp: float32 [T], log-probability of action t under the policy that chose it.
      behaviour_value: float32 [T+1], that policy's value of obs t, reward units.
      version: int32 [T], of the policy that chose action t.
      policy_state: tree of [...], memory before obs 0, no batch axis.
      metadata: origin and versions.
    """

    obs: dict[str, np.ndarray]
    action: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    truncation_value: np.ndarray
    first: np.ndarray
    behaviour_logp: np.ndarray
    behaviour_value: np.ndarray
    version: np.ndarray
    policy_state: Any
    metadata: FragmentMetadata

    @property
    def length(self) -> int:
        """T."""
        return len(self.reward)

    def sized(self) -> SampleFragment:
        """The same fragment, whose metadata say how large it is."""
        import jax  # only whoever makes fragments needs it: the buffer's process does not

        arrays = [getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "metadata"]
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        return dataclasses.replace(self, metadata=dataclasses.replace(self.metadata, num_bytes=num_bytes))
