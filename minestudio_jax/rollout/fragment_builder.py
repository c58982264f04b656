"""Builds one environment's fragments step by step, straight into the arrays that will be sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment


@dataclass(frozen=True)
class Decision:
    """What the policy said of one observation.

    Attributes:
      action: component -> int32 [1].
      logp: log-probability of that action.
      value: of the observation, reward units.
      version: of the policy that said so.
    """

    action: dict[str, np.ndarray]
    logp: float
    value: float
    version: int


class FragmentBuilder:
    """Turns the stream observation, decision, outcome, observation, ... of one environment into fragments.

    Args:
      spec: of the environment.
      fragment_length: T.
      describe: (fragment_index, start_step, valid_steps, version_first, version_last) -> metadata.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        fragment_length: int,
        describe: Callable[[int, int, int, int, int], FragmentMetadata],
    ) -> None:
        self._spec = spec
        self._length = fragment_length
        self._describe = describe
        self._fragment_index = 0
        self._env_step = 0  # number of the step that the next decision begins
        self._open = False  # a fragment is under way
        self._t = 0  # row of the next decision
        self._pending = False  # a decision waits for its outcome

    @property
    def needs_policy_state(self) -> bool:
        """The next observation opens a fragment, so the memory before it must be given to `observe`."""
        return not self._open or self._t == self._length

    @property
    def awaits_outcome(self) -> bool:
        """A decision was taken in and what came of it was not."""
        return self._pending

    def observe(
        self, obs: dict[str, np.ndarray], first: bool, decision: Decision, policy_state: Any
    ) -> SampleFragment | None:
        """Takes an observation and the decision made on it.

        Args:
          obs: name -> [...], no batch axis.
          first: the observation begins an episode.
          decision: the policy's.
          policy_state: memory before the observation; looked at only if `needs_policy_state`.
        Returns:
          The fragment that this observation completes as its row T, if it does.
        """
        if self._pending:
            raise RuntimeError("an observation came before the outcome of the previous action")
        finished = None
        if self._open and self._t == self._length:
            self._write_observation(self._length, obs, first, decision.value)
            finished = self._finish()
        if not self._open:
            self._begin(policy_state, decision.version)
        self._write_observation(self._t, obs, first, decision.value)
        for name, component in decision.action.items():
            self._arrays["action"][name][self._t] = component
        self._arrays["behaviour_logp"][self._t] = decision.logp
        self._version_last = decision.version
        self._pending = True
        return finished

    def outcome(self, reward: float, terminated: bool, truncated: bool, truncation_value: float) -> None:
        """Takes what came of the pending action; `truncation_value` is 0 unless truncated."""
        if not self._pending:
            raise RuntimeError("an outcome came without an action")
        arrays, t = self._arrays, self._t
        arrays["reward"][t] = reward
        arrays["terminated"][t] = terminated
        arrays["truncated"][t] = truncated
        arrays["truncation_value"][t] = truncation_value
        self._t += 1
        self._env_step += 1
        self._pending = False

    def fail(self) -> SampleFragment | None:
        """The environment broke in the pending action.

        Returns:
          The fragment cut before it, or None if it holds no complete step.
        """
        if not self._pending:
            return None
        self._pending = False
        finished = self._finish() if self._t else None
        self._open = False
        self._env_step += 1  # the lost step: no fragment can be joined across it
        return finished

    def _begin(self, policy_state: Any, version: int) -> None:
        rows = self._length
        self._arrays: dict[str, Any] = {
            "obs": {k: np.zeros((rows + 1, *s.shape), s.dtype) for k, s in self._spec.observation.items()},
            "action": {k: np.zeros((rows, 1), np.int32) for k in self._spec.action},
            "reward": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": np.zeros(rows, bool),
            "truncation_value": np.zeros(rows, np.float32),
            "first": np.zeros(rows + 1, bool),
            "behaviour_logp": np.zeros(rows, np.float32),
            "behaviour_value": np.zeros(rows + 1, np.float32),
            "policy_state": policy_state,
        }
        self._t = 0
        self._start_step = self._env_step
        self._version_first = version
        self._open = True

    def _write_observation(self, row: int, obs: dict[str, np.ndarray], first: bool, value: float) -> None:
        for name, array in obs.items():
            self._arrays["obs"][name][row] = array
        self._arrays["first"][row] = first
        self._arrays["behaviour_value"][row] = value

    def _finish(self) -> SampleFragment:
        arrays = self._arrays
        if self._t < self._length:
            # Row t holds the failed decision: its observation and value stay, its action goes.
            for component in arrays["action"].values():
                component[self._t] = 0
            arrays["behaviour_logp"][self._t] = 0.0
        metadata = self._describe(
            self._fragment_index, self._start_step, self._t, self._version_first, self._version_last
        )
        self._fragment_index += 1
        self._open = False
        return SampleFragment(**arrays, metadata=metadata)
