"""Frames per second of VPT networks, acting and learning, beside the arithmetic that the device can do.

    python benchmarks/vpt.py [--sizes=1,2,3] [--batches=1,4,16,64] [--update=4x16] [--compute_dtype=float32]

Acting: one frame of each environment through `rollout.inference.Inference`, images, memory and sampling included.
Learning: one whole PPO update of so many fragments x steps (--update=; empty leaves it out).

FLOPs are counted from the layers, two for each multiplication and addition; norms, ReLU, pooling and softmax are not
counted. The ceiling is an 8192 x 8192 (on CPUs 2048 x 2048) matrix product of the same type, the best of several in the
same run. With --pytorch=INTERPRETER the same network acts in eager PyTorch, in turns with ours. Each figure is the
median of several timings.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs import actions
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.policies.vpt_transformer import BIAS_TERMS
from minestudio_jax.rollout.inference import Inference
from minestudio_jax.trainer.batch import abstract_batch
from minestudio_jax.trainer.cost import peak_flops
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from minestudio_jax.utils.xla_flags import configure_cpu_compiler


def flops_per_frame(shape: VPTShape) -> float:
    """Of one forward pass of one frame with T = 1."""
    height, width = shape.image_size
    total, inputs = 0.0, 3
    for outputs in shape.channels:
        total += 2 * 9 * inputs * outputs * height * width
        height, width, inputs = -(-height // 2), -(-width // 2), outputs
        total += 4 * 2 * 9 * outputs * outputs * height * width
    size = shape.hidsize
    total += 2 * (math.prod(shape.final_map) * 256 + 256 * size)
    attention = 4 * size**2 + BIAS_TERMS * shape.heads * (size + shape.memory) + 2 * (shape.memory + 1) * size
    total += 2 * shape.layers * (attention + 2 * shape.pointwise_ratio * size**2)
    return total + 2 * size * (size + sum(actions.VPT_ACTION_SPEC.values()) + 1)


def median_s(call: Callable[[], Any], seconds: float) -> float:
    """Median duration of calls that go on for about so long, at least three."""
    call()
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def measure_acting(policy: VPTPolicy, params: Any, batch: int, seconds: float) -> float:
    """Seconds of one step of `batch` environments."""
    inference = Inference(policy, spec_of(policy.shape), batch, batch, seed=0, always_full=True)
    params = inference.prepared(params)
    rng = np.random.default_rng(0)
    obs = [{"image": rng.integers(0, 255, (*policy.shape.image_size, 3)).astype(np.uint8)} for _ in range(batch)]
    first, ids = np.zeros(batch, bool), np.arange(batch, dtype=np.int32)
    return median_s(lambda: inference.act(params, obs, first, ids)(), seconds)


def measure_update(policy: VPTPolicy, fragments: int, steps: int, seconds: float) -> tuple[float, float]:
    """Seconds of one update of one epoch in one batch, and how many forward passes its arithmetic amounts to."""
    config = TrainerConfig(batch_size_per_device=fragments, batches_per_iteration=1, context_length=steps)
    state = jax.jit(partial(initial_state, policy, config, jax.random.key(0)))()
    batch = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_batch(policy, spec_of(policy.shape), fragments, steps)
    )
    update = jax.jit(make_update(policy, config, make_mesh(config)), donate_argnums=0)
    held, now = [state], coefficients(config, 0, 0)

    def once() -> None:
        held[0], *_ = jax.block_until_ready(update(held[0], batch, now))

    # The advantages take a forward pass, the loss one and about two backward.
    return median_s(once, seconds), 4.0


def measure_pytorch(interpreter: str, width: int, batch: int, seconds: float, layout: str) -> float:
    """As `measure_acting`, of the network in eager PyTorch."""
    program = Path(__file__).with_name("vpt_pytorch.py")
    command = [interpreter, str(program), str(width), str(batch), str(seconds), layout]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    configure_cpu_compiler()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,2,3", help="widths: 1x, 2x, 3x")
    parser.add_argument("--batches", default="1,4,16,64", help="environments that act at a time")
    parser.add_argument("--update", default="4x16", help="fragments x steps of the update; empty: none")
    parser.add_argument("--compute_dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--pytorch", default="", help="an interpreter with PyTorch, to act with the same network there")
    parser.add_argument("--remat", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring for each figure")
    arguments = parser.parse_args()
    top = peak_flops(arguments.compute_dtype)
    print(f"{jax.devices()[0].device_kind}, {arguments.compute_dtype}, {time.strftime('%Y-%m-%d')}")
    print(f"matrix product: {top / 1e9:,.0f} GFLOP/s")
    for width in map(int, arguments.sizes.split(",")):
        shape = VPTShape.of_width(width)
        policy = VPTPolicy(spec_of(shape), shape, arguments.compute_dtype, arguments.remat)
        params = jax.jit(policy.init)(jax.random.key(0))
        flops = flops_per_frame(shape)
        memory = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.initial_state(1)))
        print(
            f"{width}x: {flops / 1e9:.2f} GFLOP a frame, {memory / 2**20:.1f} MiB of memory an environment", flush=True
        )
        for batch in map(int, filter(None, arguments.batches.split(","))):
            took = measure_acting(policy, params, batch, arguments.seconds)
            _tell(f"act, {batch} environments", took, batch, batch * flops, top)
            for layout in ("default layout", "channels_last") if arguments.pytorch else ():
                theirs = measure_pytorch(arguments.pytorch, width, batch, arguments.seconds, layout)
                _tell(f"  PyTorch, {layout}", theirs, batch, batch * flops, top)
        if arguments.update:
            del params
            fragments, steps = map(int, arguments.update.split("x"))
            took, passes = measure_update(policy, fragments, steps, arguments.seconds)
            frames = fragments * steps
            _tell(f"update, {fragments} x {steps} steps", took, frames, passes * frames * flops, top)


def _tell(what: str, took: float, frames: int, flops: float, top: float) -> None:
    print(
        f"  {what:24s} {1000 * took:9.1f} ms   {frames / took:9.1f} frames/s   {flops / took / 1e9:9.1f} GFLOP/s = "
        f"{100 * flops / took / top:4.0f} % of the matrix product's",
        flush=True,
    )


if __name__ == "__main__":
    main()
