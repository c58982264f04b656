"""The interface between policies and everybody else: pure functions over a parameter tree."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # a pytree of float32 arrays
PolicyState = Any  # a pytree of arrays with a leading batch axis; () for a policy without memory


class PolicyOutput(NamedTuple):
    """What a policy says of a batch of observations.

    Attributes:
      logits: action component -> float32 [B, T, A], normalised log-probabilities.
      value: float32 [B, T], expected discounted return in reward units.
    """

    logits: dict[str, jax.Array]
    value: jax.Array


class TensorRule(NamedTuple):
    """Which axis of some parameters devices that share a batch may split among themselves.

    Attributes:
      pattern: a regular expression, searched for in the parameters' paths, such as "network.block_0.mlp0".
      axis: of these arrays.
    """

    pattern: str
    axis: int


class Policy(abc.ABC):
    """A recurrent actor-critic.

    Subclasses provide the three abstract functions, all of them pure and `jit`-able. The rest is for policies
    whose value head normalises returns; the defaults are those of a head that does not.

    A leaf of the parameters that gets no gradient (statistics, constants behind `stop_gradient`) is left alone
    by the optimiser, provided it has fewer than two axes or weight decay is off.
    """

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, drawn with the PRNG key."""

    def abstract_params(self) -> Params:
        """The parameters as jax.ShapeDtypeStructs."""
        return jax.eval_shape(self.init, jax.random.key(0))

    @abc.abstractmethod
    def initial_state(self, batch: int) -> PolicyState:
        """Empty memory for `batch` environments; every leaf has a leading axis of that size."""

    @abc.abstractmethod
    def apply(
        self, params: Params, obs: dict[str, jax.Array], first: jax.Array, state: PolicyState
    ) -> tuple[PolicyOutput, PolicyState]:
        """Runs T steps for B environments.

        Args:
          params: from `init`.
          obs: name -> [B, T, ...], dtypes as the environment gives them.
          first: bool [B, T], the observation begins an episode: memory of what came before is dropped there.
          state: memory before step 0, leading axis B.
        Returns:
          The outputs and the memory after step T-1. Any split of a sequence into consecutive calls gives
          the same outputs.
        """

    def tensor_rules(self) -> Sequence[TensorRule]:
        """How large matrices are split over the mesh's axis 'tensor'; the first rule that fits counts."""
        return ()

    def for_cpu(self) -> tuple[Policy, Callable[[Params], Params]]:
        """The policy in the form in which CPUs act fastest, and what turns this one's parameters into that one's.

        It need not be differentiable, and its memory is interchangeable with this one's. Parameters are turned outside
        of jit, in a thread beside the acting: what is as it was costs nothing then.
        """
        return self, lambda params: params

    def only_value_head(self, update: Params) -> Params:
        """A change of the parameters with everything outside the value head set to 0, for value warm-up.

        Without this method there is no warm-up: trainer.vf_warmup is refused.
        """
        return update

    def zero_value_head(self, params: Params) -> Params:
        """Parameters whose value is 0 everywhere; statistics of values stay what they are.

        Without this method the value begins as it was drawn, and trainer.zero_initial_vf=false is refused.
        """
        return params

    def value_scale(self, params: Params) -> jax.Array:
        """Float32 [], the deviation by which value errors are divided in the loss."""
        del params
        return jnp.ones((), jnp.float32)

    def update_value_statistics(self, params: Params, target: jax.Array, weight: jax.Array) -> Params:
        """Takes the value targets of one iteration into the statistics, leaving every value as it was.

        Args:
          params: current parameters.
          target: float32 [N, T], value targets in reward units.
          weight: float32 [N, T], 0 where the target is not to be counted.
        """
        del target, weight
        return params
