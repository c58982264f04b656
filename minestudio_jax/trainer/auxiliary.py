"""Losses besides PPO's, each on data of its own: the plug-in point and what the update sees of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.config import ConfigError, TrainerConfig
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer.behaviour_cloning import BehaviourCloning
from minestudio_jax.utils.imports import load_factory

Metrics = dict[str, jax.Array]

_SHIPPED = {"behaviour_cloning": BehaviourCloning}


class AuxiliaryLoss(Protocol):
    """A term of the loss of every optimiser step.

    docs/auxiliary-losses.md has an example. `trainer.auxiliary` names it by the import path of a function that gives
    one when called as fn(context_length=, num_devices=, **options). That is before any environment is started, so
    wrong options are best refused there, by a ValueError.
    """

    def check(self, spec: EnvironmentSpec) -> None:
        """
        Raises:
          ValueError: the loss cannot be used with such environments; says why.
        """
        ...

    def draw(self, rng: np.random.Generator) -> Any:
        """What one optimiser step needs: a tree of NumPy arrays [R, ...], always of the same shapes and dtypes.

        R is a multiple of num_devices, those that batches are split over: the rows are spread over them, too. The
        stream is a function of the run's seed and the iteration, so a run that is continued draws what it would have
        drawn.
        """
        ...

    def loss(self, policy: Policy, params: Params, data: Any) -> tuple[jax.Array, Metrics]:
        """The loss [] and metrics [] by name, of what `draw` gave; differentiable, inside jit."""
        ...


@dataclasses.dataclass(frozen=True)
class _Term:
    name: str
    coefficient: float
    loss: AuxiliaryLoss


class AuxiliaryLosses:
    """All of a run.

    Args:
      config: `auxiliary` and how many optimiser steps an iteration has.
      num_devices: over which batches are split, and this data with them.
    Raises:
      ConfigError: one of them is not known, or refuses its options.
    """

    def __init__(self, config: TrainerConfig, num_devices: int) -> None:
        self._shape = (config.epochs_per_iteration, config.batches_per_iteration // config.gradient_accumulation)
        self._num_devices = num_devices
        self._terms = [_term(name, options, config, num_devices) for name, options in config.auxiliary.items()]

    def __bool__(self) -> bool:
        return bool(self._terms)

    def check(self, spec: EnvironmentSpec) -> None:
        """
        Raises:
          ValueError: one of them does not fit the environments, or its data the devices.
        """
        for term in self._terms:
            try:
                term.loss.check(spec)
            except ValueError as error:
                raise ValueError(f"trainer.auxiliary: {term.name}: {error}") from error
            for leaf in jax.tree.leaves(term.loss.draw(np.random.default_rng(0))):
                if not leaf.shape or leaf.shape[0] % self._num_devices:
                    raise ValueError(
                        f"trainer.auxiliary: {term.name} draws an array of shape {leaf.shape}, whose first axis cannot "
                        f"be spread over {self._num_devices} devices"
                    )

    def draw(self, seed: int, iteration: int) -> Sequence[Any]:
        """An iteration's data: for each loss a tree of [epochs, steps, R, ...], NumPy."""
        epochs, steps = self._shape
        drawn = []
        for number, term in enumerate(self._terms):
            rng = np.random.default_rng([seed, iteration, number])
            trees = [term.loss.draw(rng) for _ in range(epochs * steps)]
            drawn.append(
                jax.tree.map(lambda *leaves: np.stack(leaves).reshape(epochs, steps, *leaves[0].shape), *trees)
            )
        return drawn

    def gradient(
        self, policy: Policy, params: Params, data: Sequence[Any], warm_up: jax.Array
    ) -> tuple[Params, jax.Array, Metrics]:
        """Gradient of the weighted sum, that sum [], and the metrics; in value warm-up sum and gradient are 0.

        Args:
          data: of one optimiser step.
        """

        def total(params: Params) -> tuple[jax.Array, Metrics]:
            summed = jnp.zeros((), jnp.float32)
            metrics: Metrics = {}
            for term, its_data in zip(self._terms, data, strict=True):
                loss, said = term.loss.loss(policy, params, its_data)
                summed += term.coefficient * loss
                metrics |= {f"auxiliary/{term.name}/{key}": x for key, x in {"loss": loss, **said}.items()}
            return jnp.where(warm_up, 0.0, summed), metrics

        (summed, metrics), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return gradient, summed, metrics


def _term(name: str, options: Any, config: TrainerConfig, num_devices: int) -> _Term:
    setting = f"trainer.auxiliary: {name}"
    if not isinstance(options, dict):
        raise ConfigError(f"{setting}: {options!r} is not a JSON object of options")
    options = dict(options)
    coefficient = options.pop("coef", None)
    if not isinstance(coefficient, (int, float)) or isinstance(coefficient, bool) or not coefficient > 0:
        raise ConfigError(f"{setting}: coef={coefficient!r}: give the weight of this loss, a number above 0")
    if name in _SHIPPED:
        factory: Any = _SHIPPED[name]
    elif name.count(":") == 1:
        factory = load_factory("trainer.auxiliary", name)
    else:
        raise ConfigError(f"{setting}: known are {', '.join(_SHIPPED)}, or give package.module:function")
    try:
        loss = factory(context_length=config.context_length, num_devices=num_devices, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{setting} with {options}: {error}") from error
    return _Term(name, float(coefficient), loss)
