"""Frames per second of the embedded world, and of PPO that plays and learns on one device.

    python benchmarks/voxel.py [--task=chop_tree] [--preset=toy] [--worlds=1,16,64] [--sizes=64,128] [--train]

Without --train: step and render, a jitted scan over steps with random actions, of which nothing but the last image
leaves the device. The floor beside it: the bytes of the rays' state, if every stride of all rays reads and writes it
once in memory, which is what a compiler does that keeps nothing in registers or caches between strides.

With --train: whole iterations of rollout.mode=device with the small policy (channels 8,16,16, hidden size 128, two
epochs), and what their stages take alone: stepping, rendering, acting, and the update. The floor beside it: the
arithmetic of the policy's matrix products and convolutions, by XLA's own count of one forward pass.

Each figure is the median of several timings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs import voxel
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

_RAY_STATE_BYTES = 2 * 4 * 4  # three coordinates of the cell and its clearance: read and written
_REPEATS = 5


def measure(world: voxel.World, num_worlds: int, size: int, seconds: float) -> tuple[float, float]:
    """Frames per second, and seconds to compile."""
    states = jax.jit(jax.vmap(world.reset))(jax.random.split(jax.random.key(0), num_worlds))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        states, _ = carry
        choices = world.action_spec["choice"]
        action = {"choice": jax.random.randint(key, (num_worlds, 1), 0, choices)}
        states, _ = jax.vmap(world.step)(states, action)
        return (states, jax.vmap(lambda state: world.render(state, size, size))(states)), None

    def run(states: Any, keys: jax.Array) -> Any:
        image = jnp.zeros((num_worlds, size, size, 3), jnp.uint8)
        return jax.lax.scan(step, (states, image), keys)[0]

    def timed(steps: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled[steps](states, keys[:steps]))
        return time.perf_counter() - begin

    keys = jax.random.split(jax.random.key(1), 4096)
    begin = time.perf_counter()
    compiled = {4: jax.jit(run).lower(states, keys[:4]).compile()}
    compile_s = time.perf_counter() - begin
    timed(4)
    steps = int(min(4096, max(4, seconds / _REPEATS / (timed(4) / 4))))
    compiled[steps] = jax.jit(run).lower(states, keys[:steps]).compile()
    timed(steps)
    return num_worlds * steps / statistics.median(timed(steps) for _ in range(_REPEATS)), compile_s


def measure_training(world: voxel.World, num_worlds: int, size: int) -> None:
    """Prints frames per second of whole iterations, and seconds of each stage."""
    length = 32
    config = TrainerConfig(
        batch_size_per_device=max(1, num_worlds // 4), batches_per_iteration=min(4, num_worlds),
        epochs_per_iteration=2, context_length=length,
    )  # fmt: skip
    spec = EnvironmentSpec({"image": ArraySpec((size, size, 3), "uint8")}, world.action_spec)
    policy = ImpalaPolicy(spec, (8, 16, 16), 128)
    mesh = sharding.make_mesh(config)
    collector = DeviceCollector(policy, world, mesh, num_worlds, 1, length, (size, size), seed=0)
    state = jax.jit(lambda: initial_state(policy, config, jax.random.key(0)), out_shardings=sharding.replicated(mesh))()
    jitted, now = jax.jit(make_update(policy, config, mesh)), coefficients(config, 0, 0)
    rollout = collector.begin()
    begin = time.perf_counter()
    collector.compile(state.params)
    rollout, batch, _ = collector.collect(state.params, rollout)
    update = jitted.lower(state, batch, now).compile()
    compile_s = time.perf_counter() - begin
    frames = num_worlds * length

    def play(states: Any, draw: bool) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            states, _ = carry
            action = {"choice": jax.random.randint(key, (num_worlds, 1), 0, world.action_spec["choice"])}
            states, _ = jax.vmap(world.step)(states, action)
            return (states, jax.vmap(lambda one: world.render(one, size, size))(states) if draw else carry[1]), None

        keys = jax.random.split(jax.random.key(0), length)
        return jax.lax.scan(step, (states, jnp.zeros((num_worlds, size, size, 3), jnp.uint8)), keys)[0]

    step_only, step_and_render = jax.jit(lambda s: play(s, False)), jax.jit(lambda s: play(s, True))
    worlds = jax.jit(jax.vmap(world.reset))(jax.random.split(jax.random.key(0), num_worlds))
    spent: dict[str, list[float]] = {name: [] for name in ("step", "step+render", "collect", "update")}
    for turn in range(1 + _REPEATS):
        for name in spent:
            begin = time.perf_counter()
            if name == "collect":
                rollout, batch, _ = collector.collect(state.params, rollout)
                jax.block_until_ready(batch)
            elif name == "update":
                state, *_ = jax.block_until_ready(update(state, batch, now))
            else:
                jax.block_until_ready((step_only if name == "step" else step_and_render)(worlds))
            if turn:  # the first one warms up
                spent[name].append(time.perf_counter() - begin)
    took = {name: statistics.median(values) for name, values in spent.items()}
    forward = jax.jit(policy.apply).lower(
        state.params, {"image": jnp.zeros((1, 1, size, size, 3), jnp.uint8)}, jnp.zeros((1, 1), bool),
        policy.initial_state(1),
    )  # fmt: skip
    analysis = forward.compile().cost_analysis()
    assert analysis is not None
    flops = analysis["flops"]
    # One pass to act, one for the advantages, and two epochs of one forward and about two backward.
    needed = flops * frames * (1 + 1 + config.epochs_per_iteration * 3)
    whole = took["collect"] + took["update"]
    print(
        f"  {size:4d} x {size:<4d} {num_worlds:6d} worlds  {frames / whole:12,.0f} trained frames/s   "
        f"compiled in {compile_s:4.1f} s   {needed / whole / 1e9:8.1f} GFLOP/s\n"
        f"      of each iteration of {frames} frames: step {took['step']:.4f} s, "
        f"render {took['step+render'] - took['step']:.4f} s, "
        f"act and store {took['collect'] - took['step+render']:.4f} s, update {took['update']:.4f} s",
        flush=True,
    )


def main() -> None:
    configure_cpu_compiler()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="chop_tree")
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--worlds", default="1,16,64", help="numbers of worlds, separated by commas")
    parser.add_argument("--sizes", default="64,128", help="sides of the image in pixels, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring for each figure")
    parser.add_argument("--train", action="store_true", help="measure whole training iterations")
    arguments = parser.parse_args()
    world = voxel.make(arguments.task, preset=arguments.preset)
    device = jax.devices()[0]
    print(f"{arguments.task}, {arguments.preset}, {device.device_kind}, {time.strftime('%Y-%m-%d')}")
    for size in map(int, arguments.sizes.split(",")):
        ray_bytes = size * size * world.settings.ray_strides * _RAY_STATE_BYTES
        for num_worlds in map(int, arguments.worlds.split(",")):
            if arguments.train:
                measure_training(world, num_worlds, size)
                continue
            frames, compile_s = measure(world, num_worlds, size, arguments.seconds)
            print(
                f"  {size:4d} x {size:<4d} {num_worlds:6d} worlds  {frames:12,.0f} frames/s   "
                f"compiled in {compile_s:4.1f} s   {frames * ray_bytes / 1e9:8.1f} GB/s of ray state",
                flush=True,
            )


if __name__ == "__main__":
    main()
