"""Builds one environment's fragments step by step, straight into the arrays that will be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec, Observation
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment

# (fragment_index, start_step, valid_steps, version_first, version_last) -> metadata
Describe = Callable[[int, int, int, int, int], FragmentMetadata]


@dataclass(frozen=True)
class Decision:
    """What the policy said of one observation.

    Attributes:
      action: component -> int32 [1].
      logp: log-probability of that action.
      value: of the observation, reward units.
      version: of the policy that said so.
    """

    action: Mapping[str, np.ndarray]
    logp: float
    value: float
    version: int


@dataclass
class _Draft:
    """A fragment being written.

    Attributes:
      arrays: SampleFragment's fields by name.
      start_step: number of its first step within the environment.
      steps: genuine ones so far; the row of the next decision.
    """

    arrays: dict[str, Any]
    start_step: int
    steps: int = 0


class FragmentBuilder:
    """Turns the stream observation, decision, outcome, observation, ... of one environment into fragments.

    Args:
      spec: of the environment.
      fragment_length: T.
      describe: makes the metadata.
    """

    def __init__(self, spec: EnvironmentSpec, fragment_length: int, describe: Describe) -> None:
        self._spec = spec
        self._length = fragment_length
        self._describe = describe
        self._fragment_index = 0
        self._env_step = 0  # number of the step that the next decision begins
        self._draft: _Draft | None = None
        self._full: _Draft | None = None  # waits for the value of its row T, which is the draft's row 0
        self._observed = False  # an observation waits for its decision
        self._decided = False  # a decision waits for its outcome

    @property
    def opens(self) -> bool:
        """The observation taken last is the first of a fragment: `decide` must be given the memory before it."""
        return self._observed and self._draft is not None and self._draft.steps == 0

    @property
    def awaits_outcome(self) -> bool:
        """A decision was taken in and what came of it was not."""
        return self._decided

    def observe(self, obs: Observation, first: bool) -> None:
        """Takes an observation, copied into its row.

        Args:
          obs: name -> [...], no batch axis.
          first: it begins an episode.
        """
        if self._observed or self._decided:
            raise RuntimeError("an observation came before the outcome of the previous action")
        if self._draft is not None and self._draft.steps == self._length:
            self._write_observation(self._draft, self._length, obs, first)
            self._full, self._draft = self._draft, None
        if self._draft is None:
            self._draft = _Draft(self._new_arrays(), self._env_step)
        self._write_observation(self._draft, self._draft.steps, obs, first)
        self._observed = True

    def decide(self, decision: Decision, policy_state: Any = None) -> SampleFragment | None:
        """Takes the decision on the observation taken last.

        Args:
          decision: the policy's.
          policy_state: memory before the observation; looked at only if it `opens` a fragment.
        Returns:
          The fragment that the observation completed as its row T, if it did.
        """
        draft = self._draft
        if not self._observed or draft is None:
            raise RuntimeError("a decision came without an observation")
        finished, self._full = self._full, None
        if finished is not None:
            finished.arrays["behaviour_value"][self._length] = decision.value
        arrays, t = draft.arrays, draft.steps
        if t == 0:
            arrays["policy_state"] = policy_state
        for name, component in decision.action.items():
            arrays["action"][name][t] = component
        arrays["behaviour_logp"][t] = decision.logp
        arrays["behaviour_value"][t] = decision.value
        arrays["version"][t] = decision.version
        self._observed, self._decided = False, True
        return None if finished is None else self._finish(finished)

    def outcome(self, reward: float, terminated: bool, truncated: bool, truncation_value: float) -> None:
        """Takes what came of the pending decision; `truncation_value` is 0 unless truncated."""
        draft = self._draft
        if not self._decided or draft is None:
            raise RuntimeError("an outcome came without an action")
        arrays, t = draft.arrays, draft.steps
        arrays["reward"][t] = reward
        arrays["terminated"][t] = terminated
        arrays["truncated"][t] = truncated
        arrays["truncation_value"][t] = truncation_value
        draft.steps += 1
        self._env_step += 1
        self._decided = False

    def cut(self) -> SampleFragment | None:
        """Gives up the pending decision: the environment broke in it, or nobody waits for it any more.

        Returns:
          The fragment cut before it, or None if it holds no complete step.
        """
        if not self._decided or self._draft is None:
            return None
        draft, self._draft = self._draft, None
        self._decided = False
        self._env_step += 1  # the lost step: no fragment can be joined across it
        if not draft.steps:
            return None
        # Row t holds the lost decision: its observation and value stay, its action goes.
        for component in draft.arrays["action"].values():
            component[draft.steps] = 0
        draft.arrays["behaviour_logp"][draft.steps] = 0.0
        draft.arrays["version"][draft.steps] = 0
        return self._finish(draft)

    def _new_arrays(self) -> dict[str, Any]:
        rows = self._length
        return {
            "obs": {k: np.zeros((rows + 1, *s.shape), s.dtype) for k, s in self._spec.observation.items()},
            "action": {k: np.zeros((rows, 1), np.int32) for k in self._spec.action},
            "reward": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": np.zeros(rows, bool),
            "truncation_value": np.zeros(rows, np.float32),
            "first": np.zeros(rows + 1, bool),
            "behaviour_logp": np.zeros(rows, np.float32),
            "behaviour_value": np.zeros(rows + 1, np.float32),
            "version": np.zeros(rows, np.int32),
            "policy_state": None,
        }

    def _write_observation(self, draft: _Draft, row: int, obs: Observation, first: bool) -> None:
        arrays = draft.arrays
        for name, array in obs.items():
            arrays["obs"][name][row] = array
        arrays["first"][row] = first

    def _finish(self, draft: _Draft) -> SampleFragment:
        versions = draft.arrays["version"]
        metadata = self._describe(
            self._fragment_index, draft.start_step, draft.steps, int(versions[0]), int(versions[draft.steps - 1])
        )
        self._fragment_index += 1
        return SampleFragment(**draft.arrays, metadata=metadata)
