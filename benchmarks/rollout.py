"""How much of the environments' own speed the rollout side keeps, and what it costs while they are slow.

    python benchmarks/rollout.py [--policies=small,large] [--step-ms=20,50] [--envs=1,8,32,128] [--workers=2]

Environments sleep through their steps (plus or minus a fifth; one reset in ten takes 2 s) and keep a clock of the time
they took themselves, so that their limit is known: steps by that time. Both policies are IMPALA's with a GRU of 256:
"small" sees 64x64 pixels, "large" 128x128. For each setting:

* bare act: the jitted policy alone, in a loop over batches of the same size, without environments, before and after;
* rollout: a Ray rollout worker with its environments in processes, writing fragments into the replay buffer, which
  drops the oldest; no learner. Steps per second by the environments' clocks, as a share of the smaller of the
  environments' limit and the bare act;
* cycle: what is possible if an environment waits for nothing but its own inference, N / (step + act of one).

--idle measures the worker's own processor time while all its environments take 5 s a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import threading
import time
import uuid
from pathlib import Path

import jax
import numpy as np
import psutil

from minestudio_jax.config import Config, EnvConfig, ReplayConfig, RolloutConfig, TrainerConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.inference import Inference
from minestudio_jax.rollout.rollout_manager import RolloutManager
from minestudio_jax.run import ray_cluster
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

SIZES = {"small": 64, "large": 128}
LARGEST_BATCH = 32
SLOW_RESETS = {"slow_reset_s": 2.0, "slow_reset_share": 0.1, "jitter": 0.2}
SETTLE_S = 3.0


def settings(size: int, envs: int, workers: int = 1, **options: object) -> Config:
    return Config(
        env=EnvConfig(
            factory="benchmarks.slow_environment:make",
            options={"height": size, "width": size, **options},
            max_concurrent_starts=0,
        ),
        rollout=RolloutConfig(
            num_rollout_workers=workers,
            num_envs=envs // workers,
            inference_batch_size=min(envs // workers, LARGEST_BATCH),
            fragment_length=64,
            num_cpus_per_worker=psutil.cpu_count() // workers,
        ),
        replay=ReplayConfig(when_full="drop_oldest", max_chunks=8),
        trainer=TrainerConfig(batch_size_per_device=1, batches_per_iteration=1),
    )


def bare_act(config: Config, size: int, batch: int, seconds: float) -> float:
    """Frames per second of the policy alone."""
    spec = EnvironmentSpec({"image": ArraySpec((size, size, 3), "uint8")}, {"choice": 8})
    policy = make_policy(config, spec)
    inference = Inference(policy, spec, batch, batch, seed=0, always_full=True)
    params = inference.prepared(jax.jit(policy.init)(jax.random.key(0)))
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    obs, first, ids = [{"image": image}] * batch, np.zeros(batch, bool), np.arange(batch, dtype=np.int32)
    inference.act(params, obs, first, ids)()
    acts, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        inference.act(params, obs, first, ids)()
        acts += 1
    return acts * batch / (time.perf_counter() - begin)


class Rollout:
    """Workers with their environments and a Ray of their own, acting until it is closed."""

    def __init__(self, config: Config, folder: Path) -> None:
        # What workers reserved goes with their Ray.
        ray_cluster.start_ray(config)
        self.clocks = folder / "clocks"
        self.clocks.mkdir()
        options = {**config.env.options, "clock_dir": str(self.clocks)}
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, options=options))
        self._manager = RolloutManager(config, uuid.uuid4().hex, folder, threading.Event())
        spec = self._manager.wait_until_started()
        assert spec is not None
        params = jax.jit(make_policy(config, spec).init)(jax.random.key(0))
        self._manager.watch(lambda worker_id, report: None)
        self._manager.publish(1, policy_store.save_version(folder / "versions", 1, params))
        self._num_envs = config.rollout.num_envs * config.rollout.num_rollout_workers
        give_up = time.monotonic() + 300
        while not (self.clock()[:, 0] > 0).all():
            if time.monotonic() > give_up:
                raise TimeoutError(f"only {len(self.clock())} of {self._num_envs} environments step")
            time.sleep(0.2)

    def clock(self) -> np.ndarray:
        """[E, 2], steps and seconds of each environment, up to now."""
        rows = np.zeros((self._num_envs, 2))
        for i in range(self._num_envs):
            if (self.clocks / str(i)).exists():
                steps, seconds, since = np.fromfile(self.clocks / str(i))
                rows[i] = steps, seconds + (time.monotonic() - since if since else 0.0)
        return rows

    def close(self) -> None:
        self._manager.close(20.0)
        ray_cluster.stop_ray()


def keeping(policy: str, step_ms: float, envs: int, workers: int, seconds: float) -> None:
    size = SIZES[policy]
    config = settings(size, envs, min(envs, workers), step_s=step_ms / 1000, **SLOW_RESETS)
    batch = min(envs, LARGEST_BATCH)
    before = bare_act(config, size, batch, 2.0)
    alone = bare_act(config, size, 1, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        rollout = Rollout(config, Path(folder))
        time.sleep(SETTLE_S)
        start, begin = rollout.clock(), time.perf_counter()
        time.sleep(seconds)
        took = rollout.clock() - start
        elapsed = time.perf_counter() - begin
        rollout.close()
    act = (before + bare_act(config, size, batch, 2.0)) / 2
    steps = took[:, 0].sum() / elapsed
    limit = (took[:, 0] / took[:, 1]).sum()
    cycle = (1 / (took[:, 1] / took[:, 0] + 1 / alone)).sum()
    print(
        f"{policy:5} {envs:4} x {step_ms:g} ms: {steps:7.1f} steps/s; environments' limit {limit:7.1f}, bare act "
        f"{act:7.1f}, cycle {min(cycle, act):7.1f}; {steps / min(limit, act):.2f} of the smaller limit, "
        f"{steps / min(cycle, act):.2f} of the cycle",
        flush=True,
    )


def idle(seconds: float) -> None:
    """Processor time of the worker while every environment is in a step of 5 s."""
    config = settings(SIZES["small"], 8, step_s=5.0)
    with tempfile.TemporaryDirectory() as folder:
        rollout = Rollout(config, Path(folder))
        time.sleep(SETTLE_S)
        workers = [p for p in psutil.process_iter(["name"]) if "RolloutActor" in (p.info["name"] or "")]
        hosts = [child for worker in workers for child in worker.children(recursive=True)]

        def used(processes: list[psutil.Process]) -> float:
            return sum(t.user + t.system for t in (p.cpu_times() for p in processes))

        before = used(workers), used(hosts)
        time.sleep(seconds)
        share = [100 * (used(some) - old) / seconds for some, old in zip((workers, hosts), before, strict=True)]
        rollout.close()
    print(f"idle: the worker uses {share[0]:.1f} % of a core, its 8 environments {share[1]:.1f} %", flush=True)


def main() -> None:
    configure_cpu_compiler()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="small,large")
    parser.add_argument("--step-ms", default="20,50")
    parser.add_argument("--envs", default="1,8,32,128")
    parser.add_argument("--workers", type=int, default=2, help="rollout workers, which share the cores")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--idle", action="store_true", help="only the processor time of waiting")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"{psutil.cpu_count()} cores, {time.strftime('%Y-%m-%d')}", flush=True)
    if arguments.idle:
        idle(arguments.seconds)
        return
    for policy in arguments.policies.split(","):
        for step_ms in map(float, arguments.step_ms.split(",")):
            for envs in map(int, arguments.envs.split(",")):
                keeping(policy, step_ms, envs, arguments.workers, arguments.seconds)


if __name__ == "__main__":
    main()
