"""How fast fragments go from the last step of a worker to a batch that the learner can use.

    python benchmarks/fragments.py [--fragments=16] [--steps=256] [--size=128] [--apart_ms=0] [--repetitions=12]

A Ray actor stands for a rollout worker: it has complete fragments and hands them over as one does, all at once, as
environments in lockstep end theirs, or one after the other, as others do. The time runs from the last step of the last
one until the batch is on the learner's device: Ray's object store, the replay buffer, the lease, stacking, placing.
In turns with it, in the learner's process, a plain copy of the same bytes from warm memory to warm memory. The first
repetitions are not counted: memory that is touched for the first time is slow, and a run soon uses its own again.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import ray

from minestudio_jax.config import Config, ReplayConfig, RunConfig, TrainerConfig
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment
from minestudio_jax.rollout.fragment_sender import FragmentSender, Outbox
from minestudio_jax.rollout.heap_variables import heap_variables
from minestudio_jax.rollout.replay_buffer_actor import MAX_CALLS, ReplayBufferActor
from minestudio_jax.run import ray_cluster
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import Share
from minestudio_jax.trainer.loader import DirectLoader

WARM_UP = 4


def fragment(env_id: int, steps: int, size: int) -> SampleFragment:
    rng = np.random.default_rng(env_id)
    numbers, flags = np.zeros(steps, np.float32), np.zeros(steps, bool)
    return SampleFragment(
        obs={"image": rng.integers(0, 255, (steps + 1, size, size, 3), np.uint8)},
        action={"choice": np.zeros((steps, 1), np.int32)},
        reward=numbers,
        terminated=flags,
        truncated=flags,
        truncation_value=numbers,
        first=np.zeros(steps + 1, bool),
        behaviour_logp=numbers,
        behaviour_value=np.zeros(steps + 1, np.float32),
        version=np.ones(steps, np.int32),
        policy_state=np.zeros(256, np.float32),
        metadata=FragmentMetadata(0, 0, env_id, 0, 0, steps, "benchmark", 1, 1, "task"),
    )


class Producer:
    def __init__(self, buffer: Any, count: int, steps: int, size: int) -> None:
        self._fragments = [fragment(env_id, steps, size) for env_id in range(count)]
        self._outbox = Outbox(FragmentSender(buffer, count + 1, lambda: False), traceback.print_exception)

    def hand_over(self, index: int, apart_s: float) -> float:
        """Everything it has, as fragment `index` of each environment; when the last was there, `time.time()`."""
        steps = self._fragments[0].length
        fragments = [
            replace(f, metadata=replace(f.metadata, fragment_index=index, start_step=index * steps))
            for f in self._fragments
        ]
        there = time.time()
        for number, one in enumerate(fragments):
            if apart_s and number:
                time.sleep(max(0.0, there + apart_s - time.time()))
                there = time.time()
            assert self._outbox.offer(one, 60.0), "nobody delivers any more"
        return there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fragments", type=int, default=16)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--size", type=int, default=128, help="pixels, height and width")
    parser.add_argument("--apart_ms", type=float, default=0.0, help="between the last steps of two fragments")
    parser.add_argument("--repetitions", type=int, default=12)
    arguments = parser.parse_args()
    count = arguments.fragments
    num_bytes = count * fragment(0, arguments.steps, arguments.size).sized().metadata.num_bytes
    ray_cluster.start_ray(Config(run=RunConfig(object_store_gib=max(0.5, 3 * num_bytes / 2**30))))
    replay = ReplayConfig(max_chunks=2 * count)
    buffer: Any = (
        ray.remote(ReplayBufferActor).options(num_cpus=0, max_concurrency=MAX_CALLS).remote(replay, arguments.steps, 0)
    )
    ray.get(buffer.set_version.remote("benchmark", 1))
    as_a_worker = {"env_vars": heap_variables()}
    producer: Any = (
        ray.remote(Producer)
        .options(num_cpus=0, runtime_env=as_a_worker)
        .remote(buffer, count, arguments.steps, arguments.size)
    )

    def fetch(timeout_s: float, ahead: Callable[[], int]) -> Share | None:
        lease, _ = ray.get(buffer.lease.remote(count, timeout_s, ahead()))
        if lease is None:
            return None
        fragments = ray.get([entry.reference for entry in lease.entries])
        buffer.release.remote(lease.id)
        return Share.whole(fragments)

    loader = DirectLoader(fetch, sharding.along_batch(sharding.make_mesh(TrainerConfig())), {})
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    took, copying = [], []
    try:
        for index in range(arguments.repetitions):
            begin = time.perf_counter()
            np.copyto(target, source)
            copying.append(time.perf_counter() - begin)
            handed_over = producer.hand_over.remote(index, arguments.apart_ms / 1000)
            loaded = loader.next(60.0)
            assert loaded is not None, "nothing came within a minute"
            jax.block_until_ready(loaded.batch)
            ended = time.time()
            took.append(ended - ray.get(handed_over))
            del loaded
    finally:
        ray_cluster.stop_ray()
    way, copy = statistics.median(took[WARM_UP:]), statistics.median(copying[WARM_UP:])
    print(
        f"{time.strftime('%Y-%m-%d')}: {count} fragments, {num_bytes / 1e6:.0f} MB, {arguments.apart_ms:g} ms apart: "
        f"{num_bytes / way / 1e9:.2f} GB/s "
        f"(best {num_bytes / min(took[WARM_UP:]) / 1e9:.2f}), copy {num_bytes / copy / 1e9:.2f} GB/s "
        f"(best {num_bytes / min(copying) / 1e9:.2f}): {copy / way:.0%} of a copy's speed"
    )


if __name__ == "__main__":
    main()
