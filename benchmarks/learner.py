"""Trained frames per second of a whole iteration, advantages and epochs, beside the same in PyTorch.

    python benchmarks/learner.py [--pytorch=INTERPRETER] [--networks=small,impala,vpt] [--steps=64,256] [--compile]
                                 [--devices=2]

The small network is the quickstart's: 48x48 pixels, channels 8,16,16, memory of 128; impala is the one that
`policy.channels` and `policy.hidden_size` give by default, at 64x64 pixels: 16,32,32 and 256. An iteration of them
learns from 16 fragments in batches of 8, two epochs; one of VPT-1x from one fragment for each device, one epoch. With
--devices the CPU is so many devices, and the batch is split over them. Contexts are 32 steps for VPT, the fragment for
the others. float32. FLOP are counted by `trainer.cost`, the ceiling is the best matrix product of the run. With
--pytorch the same update runs in eager PyTorch (`benchmarks/learner_pytorch.py`), and with --compile in torch.compile
too, each in a process of its own, in turns with ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Policy
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.trainer.batch import FragmentBatch, abstract_batch
from minestudio_jax.trainer.cost import Cost, cost_of, peak_flops
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.sharding import along_batch, make_mesh, replicated
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

IMPALAS = {"small": (48, (8, 16, 16), 128), "impala": (64, (16, 32, 32), 256)}  # pixels, channels, memory
ARMS = 12


def random_batch(policy: Policy, spec: EnvironmentSpec, fragments: int, steps: int) -> FragmentBatch:
    """Frames, rewards and ends at random; an episode in fifty steps."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> Any:
        name = path[0].name
        if name in ("first", "terminated"):
            return rng.random(leaf.shape) < 0.02
        if name == "action":
            return rng.integers(0, spec.action[path[1].key], leaf.shape).astype(leaf.dtype)
        if leaf.dtype == np.uint8:
            return rng.integers(0, 255, leaf.shape).astype(np.uint8)
        if name == "reward":
            return rng.normal(size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name in ("mask", "weight"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, abstract_batch(policy, spec, fragments, steps))


def measure(
    policy: Policy, spec: EnvironmentSpec, config: TrainerConfig, fragments: int, steps: int, repeats: int
) -> tuple[float, Cost]:
    """Median seconds of an iteration, and its cost."""
    mesh = make_mesh(config)
    state = jax.jit(partial(initial_state, policy, config, jax.random.key(0)), out_shardings=replicated(mesh))()
    batch = jax.device_put(random_batch(policy, spec, fragments, steps), along_batch(mesh))
    now = coefficients(config, 0, 0)
    jitted = jax.jit(make_update(policy, config, mesh), donate_argnums=0)
    update = jitted.lower(state, batch, now).compile()
    cost = cost_of(jitted, update, state, batch, config)
    took: list[float] = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        state, *_ = jax.block_until_ready(update(state, batch, now))
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:]), cost


def main() -> None:
    configure_cpu_compiler()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="small,impala,vpt")
    parser.add_argument("--steps", default="64,256", help="T, steps of a fragment")
    parser.add_argument("--pytorch", default="", help="an interpreter with PyTorch")
    parser.add_argument("--compile", action="store_true", help="torch.compile, besides eager PyTorch")
    parser.add_argument("--repeats", type=int, default=3, help="timed iterations of each")
    parser.add_argument("--devices", type=int, default=1, help="that the CPU is to JAX")
    arguments = parser.parse_args()
    networks = arguments.networks.split(",")
    if unknown := set(networks) - {*IMPALAS, "vpt"}:
        parser.error(f"--networks={arguments.networks}: {', '.join(sorted(unknown))} is none of small, impala and vpt")
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    devices = arguments.devices
    top = peak_flops("float32")
    print(f"{jax.devices()[0].device_kind}, {time.strftime('%Y-%m-%d')}, matrix product {top / 1e9:,.0f} GFLOP/s")
    for network in networks:
        for steps in map(int, arguments.steps.split(",")):
            fragments, batch, epochs, context = (devices, devices, 1, 32) if network == "vpt" else (16, 8, 2, steps)
            config = TrainerConfig(
                batch_size_per_device=batch // devices, batches_per_iteration=fragments // batch,
                epochs_per_iteration=epochs, context_length=context, learning_rate=1e-5, entropy_bonus_coef=0.01,
                discount=0.97,
            )  # fmt: skip
            policy: Policy
            shape: dict[str, Any] = {}
            if network == "vpt":
                spec = spec_of(VPTShape())
                policy = VPTPolicy(spec, VPTShape())
            else:
                size, channels, hidden = IMPALAS[network]
                shape = {"channels": channels, "hidden": hidden}
                spec = EnvironmentSpec({"image": ArraySpec((size, size, 3), "uint8")}, {"choice": ARMS})
                policy = ImpalaPolicy(spec, channels, hidden)
            took, cost = measure(policy, spec, config, fragments, steps, arguments.repeats)
            frames = fragments * steps
            print(
                f"{network}, T = {steps}: {frames / took:8.1f} frames/s, {cost.flop / took / 1e9:6.1f} GFLOP/s = "
                f"{100 * cost.flop / took / top:.0f} % of the matrix product's; {cost}",
                flush=True,
            )
            job = {
                "network": network, "fragments": fragments, "steps": steps, "batch": batch, "epochs": epochs,
                "context": context, "discount": 0.97, "size": spec.observation["image"].shape[0],
                "heads": dict(spec.action), "repeats": arguments.repeats, **shape,
            }  # fmt: skip
            for compiled in (False, True)[: 1 + arguments.compile] if arguments.pytorch else ():
                program = str(Path(__file__).with_name("learner_pytorch.py"))
                command = [arguments.pytorch, program, json.dumps({**job, "compile": compiled})]
                theirs = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                kind = "torch.compile" if compiled else "eager PyTorch"
                print(f"    {kind}: {frames / theirs:8.1f} frames/s, {theirs / took:.2f} times as long", flush=True)


if __name__ == "__main__":
    main()
