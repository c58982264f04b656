"""What one iteration of learning costs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.state import TrainState


def peak_flops(dtype: str) -> float:
    """FLOP/s of a large matrix product on the first device, the best of ten: what everything else is measured by."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.device_put(jnp.ones((side, side), dtype), jax.devices()[0])
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(matrix, matrix))
    best = math.inf
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


@dataclass(frozen=True)
class Cost:
    """Of one iteration's update.

    Attributes:
      parameters: trained numbers.
      steps: environment steps it learns from, padding included.
      optimizer_steps: changes of the parameters.
      flop: of matrix products and convolutions, over all devices, see `flop_of`. What is computed again for a gradient
        counts again.
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


def cost_of(
    update: Any, compiled: Any, state: TrainState, batch: FragmentBatch, config: TrainerConfig, auxiliary_data: Any = ()
) -> Cost:
    """
    Args:
      update: the function from `trainer.update`.
      compiled: the same, compiled.
      state, batch: shapes and dtypes of what it takes.
      config: that it was made with.
      auxiliary_data: shapes and dtypes, as it takes it.
    """
    memory = compiled.memory_analysis()
    fragments, length = batch.reward.shape
    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        steps=fragments * length,
        optimizer_steps=config.epochs_per_iteration * config.batches_per_iteration // config.gradient_accumulation,
        flop=flop_of(jax.make_jaxpr(update)(state, batch, Coefficients.abstract(), auxiliary_data).jaxpr),
        device_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    )


def flop_of(jaxpr: Any) -> float:
    """Multiplications and additions of all matrix products and convolutions; nothing else is counted.

    Loops of known length count as often as they run, others once; of branches the dearest counts. Of forms for several
    platforms the default one counts: that is what accelerators compute, where a CPU may come by with less.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        parameters = equation.params
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = parameters["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
            case "conv_general_dilated":
                kernel = equation.invars[1].aval
                outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
                total += 2 * equation.outvars[0].aval.size * kernel.size / outputs
            case "cond":
                branches = [flop_of(branch.jaxpr) for branch in parameters["branches"]]
                platforms = parameters.get("branches_platforms")
                total += branches[platforms.index(None)] if platforms else max(branches)
            case "scan":
                total += parameters["length"] * flop_of(parameters["jaxpr"].jaxpr)
            case "shard_map":  # says what one device does
                # The second name is that of JAX from 0.10.2 on.
                axes = parameters["manual_axes" if "manual_axes" in parameters else "newly_manual_axes"]
                devices = math.prod(parameters["mesh"].shape[axis] for axis in axes)
                total += devices * flop_of(parameters["jaxpr"])
            case _:
                total += sum(flop_of(inner) for inner in jaxprs_in_params(parameters))
    return total
