"""What one iteration of learning costs, as the compiler counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.policy import Policy
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.state import TrainState
from minestudio_jax.trainer.targets import make_targets
from minestudio_jax.trainer.update import accumulated_gradient


@dataclass(frozen=True)
class Cost:
    """Of one iteration's update.

    Attributes:
      parameters: trained numbers.
      steps: environment steps it learns from, padding included.
      optimizer_steps: changes of the parameters.
      flop: floating-point operations over all devices, of passes over the network.
      device_bytes: memory of each device while it runs: state, batch and everything in between.
    """

    parameters: int
    steps: int
    optimizer_steps: int
    flop: float
    device_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters; an iteration learns from {self.steps:,} steps in {self.optimizer_steps} "
            f"optimiser steps, {self.flop / 1e9:,.1f} GFLOP, {self.device_bytes / 2**20:,.0f} MiB on each device"
        )


def cost_of(policy: Policy, config: TrainerConfig, state: TrainState, batch: FragmentBatch, compiled: Any) -> Cost:
    """
    Args:
      state, batch: shapes and dtypes of what the update takes.
      compiled: the compiled update.
    """
    fragments, length = batch.reward.shape
    context = config.context_length
    # The compiler counts the body of a loop once. One context of one batch has no loop that runs more than once.
    batches = config.batches_per_iteration
    small = _abstract_rows(batch, fragments // batches, context)
    grouped = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), small)
    coefficients = Coefficients.abstract()

    def targets(params: Any, batch: FragmentBatch) -> Any:
        return make_targets(policy, config, params, batch, fragments // batches)

    def gradient(params: Any, reference: Any, group: Any, now: Coefficients) -> Any:
        return accumulated_gradient(policy, config, params, reference, group, now)

    one_pass = _flop(targets, state.params, small)
    shapes = jax.eval_shape(targets, state.params, small)
    group = (grouped, jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), shapes))
    one_gradient = _flop(gradient, state.params, state.reference, group, coefficients)
    epochs, contexts = config.epochs_per_iteration, batches * (length // context)
    passes = epochs if config.advantage_refresh == "epoch" else 1
    memory = compiled.memory_analysis()
    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        steps=fragments * length,
        optimizer_steps=epochs * batches // config.gradient_accumulation,
        flop=contexts * (passes * one_pass + epochs * one_gradient),
        device_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    )


def _abstract_rows(batch: FragmentBatch, rows: int, steps: int) -> FragmentBatch:
    """The batch with fewer fragments and fewer steps."""
    length = batch.reward.shape[1]

    def cut(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = path[0].name
        shape = (rows, *leaf.shape[1:])
        if name in ("obs", "first", "behaviour_value"):
            shape = (rows, steps + 1, *leaf.shape[2:])
        elif name != "policy_state" and leaf.ndim > 1 and leaf.shape[1] == length:
            shape = (rows, steps, *leaf.shape[2:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(cut, batch)


def _flop(function: Any, *arguments: Any) -> float:
    analysis: Any = jax.jit(function).lower(*_unplaced(arguments)).cost_analysis()
    return float(analysis["flops"])


def _unplaced(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
