"""An update on more and more devices: time, memory of each, and bytes sent against the least there can be.

    python benchmarks/scaling.py [--devices=1,2,4,8] [--hidsize=256] [--repeats=3]

A VPT network of two blocks and small images, two fragments of 32 steps for each part of a batch, contexts of 16, two
batches. On a machine without so many accelerators the devices are virtual ones of the CPU: these share its cores, so
that the times say nothing about a cluster's; memory and bytes are those of the compiled program.

The least: for every optimiser step a sum of the gradients in a ring ('data'), or a gathering of the parameters and a
scattered sum ('fsdp'); along 'tensor' two sums of activations in every block and context, forwards and backwards, and
forwards once more for the advantages, and one of the logits in each pass forwards.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import jax
import numpy as np
from learner import random_batch

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs import actions
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.abstract import abstract_state, device_bytes, shardings_of
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.traffic import traffic_of
from minestudio_jax.trainer.update import jitted_update
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

STEPS, CONTEXT, BATCHES, ROWS = 32, 16, 2, 2


def least_bytes(policy: VPTPolicy, mesh: jax.sharding.Mesh, params_bytes: int) -> float:
    """That each device must send in an iteration."""
    shape = dict(mesh.shape)
    parts = shape["data"] * shape["fsdp"]
    sums = BATCHES * 2 * params_bytes / shape["tensor"] * (parts - 1) / parts
    tensor = shape["tensor"]
    activations = (2 + 2 + 2) * policy.shape.layers * policy.shape.hidsize
    logits = 2 * sum(actions.VPT_ACTION_SPEC.values())
    of_context = 4 * ROWS * CONTEXT * (activations + logits)
    return sums + BATCHES * STEPS // CONTEXT * 2 * of_context * (tensor - 1) / tensor


def measure(axis: str, devices: int, hidsize: int, repeats: int) -> None:
    """Prints one row."""
    config = TrainerConfig(
        mesh=f"{axis}:{devices}", batch_size_per_device=ROWS, batches_per_iteration=BATCHES, context_length=CONTEXT,
    )  # fmt: skip
    shape = VPTShape(hidsize, 8, 2, 32, channels=(16, 16), image_size=(32, 32))
    spec = spec_of(shape)
    policy = VPTPolicy(spec, shape)
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    abstract = abstract_state(policy, config, mesh)
    placed = shardings_of(abstract)
    state = jax.jit(partial(initial_state, policy, config, jax.random.key(0)), out_shardings=placed)()
    fragments = ROWS * BATCHES * sharding.batch_shards(mesh)
    batch = jax.device_put(random_batch(policy, spec, fragments, STEPS), sharding.along_batch(mesh))
    now = coefficients(config, 0, 0)
    jitted = jitted_update(policy, config, mesh, placed)
    update = jitted.lower(state, batch, now).compile()
    took = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        state, *_ = jax.block_until_ready(update(state, batch, now))
        took.append(time.perf_counter() - begin)
    params_bytes = sum(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract.params))
    sent, least = traffic_of(update, devices).total_bytes, least_bytes(policy, mesh, params_bytes)
    memory = update.memory_analysis()
    assert memory is not None
    rest = memory.temp_size_in_bytes
    print(
        f"{axis:>6} {devices:>3}  {fragments * STEPS:>6,} steps  {statistics.median(took[1:]):7.2f} s  "
        f"state {device_bytes(abstract) / 1e6:7.1f} MB  rest {rest / 1e6:7.1f} MB"
        f"  sent {sent / 1e6:7.1f} MB  least {least / 1e6:7.1f} MB" + (f"  {sent / least:.2f} times" if least else ""),
        flush=True,
    )


def main() -> None:
    configure_cpu_compiler()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--axes", default="data,fsdp,tensor")
    parser.add_argument("--hidsize", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.devices.split(",")]
    jax.config.update("jax_num_cpu_devices", max(numbers))
    print(f"{jax.devices()[0].device_kind}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs")
    for axis in arguments.axes.split(","):
        for devices in numbers:
            if devices > 1 or axis == "data":
                measure(axis, devices, arguments.hidsize, arguments.repeats)


if __name__ == "__main__":
    main()
