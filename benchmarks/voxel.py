"""Frames per second of the embedded world: step and render, for several numbers of worlds and image sizes.

    python benchmarks/voxel.py [--task=chop_tree] [--preset=toy] [--worlds=1,16,64] [--sizes=64,128]

Each figure is the median of several timings of a jitted scan over steps with random actions; nothing but the last image
leaves the device. The floor is printed beside: the bytes that the rays' state must cross in every step of the traversal
if every step is one pass over memory, which is what a compiler does that keeps nothing in registers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from minestudio_jax.envs import voxel

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="chop_tree")
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--worlds", default="1,16,64", help="numbers of worlds, separated by commas")
    parser.add_argument("--sizes", default="64,128", help="sides of the image in pixels, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring for each figure")
    arguments = parser.parse_args()
    world = voxel.make(arguments.task, preset=arguments.preset)
    device = jax.devices()[0]
    print(f"{arguments.task}, {arguments.preset}, {device.device_kind}, {time.strftime('%Y-%m-%d')}")
    for size in map(int, arguments.sizes.split(",")):
        ray_bytes = size * size * world.settings.ray_strides * _RAY_STATE_BYTES
        for num_worlds in map(int, arguments.worlds.split(",")):
            frames, compile_s = measure(world, num_worlds, size, arguments.seconds)
            print(
                f"  {size:4d} x {size:<4d} {num_worlds:6d} worlds  {frames:12,.0f} frames/s   "
                f"compiled in {compile_s:4.1f} s   {frames * ray_bytes / 1e9:8.1f} GB/s of ray state",
                flush=True,
            )


if __name__ == "__main__":
    main()
