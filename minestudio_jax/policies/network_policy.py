"""NetworkPolicy: a policy made of one Flax network with a normalised value head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy, PolicyOutput, PolicyState
from minestudio_jax.policies.value_normalizer import ValueNormalizer


class NetworkPolicy(Policy):
    """Parameters are `{"network": nested dict of arrays, "value_statistics": ValueStatistics}`.

    Args:
      build: makes the network, `network(image, first, memory) -> (logits, normalised value [B, T], memory)`, whose
        last layer for the value is called `value_head` and is linear.
      normalizer: of the value.
      normalizes: whether the statistics follow the value targets.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], normalizer: ValueNormalizer, normalizes: bool) -> None:
        self._build = build
        self._normalizer, self._normalizes = normalizer, normalizes
        self._graph, self._abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        network = nnx.to_pure_dict(nnx.split(self._build(nnx.Rngs(params=key)))[1])
        return {"network": network, "value_statistics": self._normalizer.initial()}

    def network(self, params: Params) -> Any:
        """The Flax module that holds these parameters."""
        variables = jax.tree.map(lambda leaf: leaf, self._abstract)  # a copy: merging must not fill the original
        nnx.replace_by_pure_dict(variables, params["network"])
        return nnx.merge(self._graph, variables)

    def apply(
        self, params: Params, obs: dict[str, jax.Array], first: jax.Array, state: PolicyState
    ) -> tuple[PolicyOutput, PolicyState]:
        logits, value, state = self.network(params)(obs["image"], first, state)
        mean, scale = self._normalizer.moments(lax.stop_gradient(params["value_statistics"]))
        return PolicyOutput(heads.masked(logits, obs), value * scale + mean), state

    def only_value_head(self, update: Params) -> Params:
        zeros = jax.tree.map(jnp.zeros_like, update)
        return _with_value_head(zeros, *_value_head(update))

    def zero_value_head(self, params: Params) -> Params:
        kernel, bias = _value_head(params)
        mean, scale = self._normalizer.moments(params["value_statistics"])
        return _with_value_head(params, jnp.zeros_like(kernel), jnp.full_like(bias, -mean / scale))

    def value_scale(self, params: Params) -> jax.Array:
        return self._normalizer.moments(params["value_statistics"])[1]

    def update_value_statistics(self, params: Params, target: jax.Array, weight: jax.Array) -> Params:
        if not self._normalizes:
            return params
        old = params["value_statistics"]
        new = self._normalizer.updated(old, target, weight)
        kernel, bias = self._normalizer.rescaled(*_value_head(params), old, new)
        return {**_with_value_head(params, kernel, bias), "value_statistics": new}


def _value_head(params: Params) -> tuple[jax.Array, jax.Array]:
    head = params["network"]["value_head"]
    return head["kernel"], head["bias"]


def _with_value_head(params: Params, kernel: jax.Array, bias: jax.Array) -> dict[str, Any]:
    network = {**params["network"], "value_head": {"kernel": kernel, "bias": bias}}
    return {**params, "network": network}
