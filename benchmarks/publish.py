"""How long a policy version takes from the learner to the workers, and whom it holds up.

    python benchmarks/publish.py [--parameters=1m,71m,248m] [--ways=memory,bfloat16,object_store,minestudio]

Two workers are real Ray actors that act all the time (a small jitted function of the parameters, then a millisecond of
sleep) while versions are read beside it. In turns, so that all have the same machine:

* a plain copy of the same bytes, by NumPy, in one thread;
* versions through memory, the same in bfloat16, and through Ray's object store, by the package's publisher and loader;
* MineStudio's scheme: the float32 arrays are put into the object store once, each worker gets them and copies them over
  its own parameters.

The time is from the end of an update to the first action of the later of the two workers. "learner" is the time for
which the learner's thread is held up: handing over, and dispatching the next update, which takes over the parameters'
memory. "gap" is the longest time between two actions of a worker from one version to the next; "at rest" is the same
while nothing is published, for as long, and "beside an update" while the learner makes one that is not published. All
ways of 248 million parameters together take more than 24 GiB of memory: give them one at a time.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ray

from minestudio_jax.config import Config, RolloutConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Policy
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.rollout.heap_variables import HEAP_VARIABLES
from minestudio_jax.rollout.inference import placed
from minestudio_jax.rollout.policy_loading import PolicyLoader, let_acting_go_on, pack
from minestudio_jax.run import ray_cluster
from minestudio_jax.trainer.publisher import ParamPublisher, Publication
from minestudio_jax.utils.memory_folder import MemoryFolder

WAYS = ("memory", "bfloat16", "object_store", "minestudio")
WORKERS = 2
DEADLINE_S = 120.0


def policy_of(size: str) -> Policy:
    """About as many parameters as the name says."""
    if size == "1m":
        return ImpalaPolicy(
            EnvironmentSpec({"image": ArraySpec((64, 64, 3), "uint8")}, {"choice": 8}), (16, 32, 32), 300
        )
    shape = {"71m": VPTShape(), "248m": VPTShape(hidsize=2048, heads=16, channels=(128, 256, 256))}[size]
    return VPTPolicy(spec_of(shape), shape)


class Worker:
    """Acts without a pause with the newest parameters, as a rollout worker does; nothing comes of it."""

    def __init__(self, size: str, ways: Sequence[str]) -> None:
        policy = policy_of(size)
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
        _, self._prepare = policy.for_cpu()
        if "minestudio" in ways:
            self._state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        self._loader = PolicyLoader(abstract, self._set, self._fail)
        self._act = jax.jit(lambda leaf, x: x @ x + leaf.ravel()[0])
        self._policy: tuple[int, Any] = (-1, np.zeros(1, np.float32))
        self._condition = threading.Condition()
        self._first: dict[int, float] = {}
        self._gap = 0.0
        self._error: Exception | None = None
        let_acting_go_on()
        threading.Thread(target=self._run, daemon=True).start()

    def load_policy(self, version: int, where: Any) -> None:
        self._loader.offer(version, where)

    def load_state_dict(self, version: int, references: list[Any]) -> None:
        """MineStudio's: into place, and then they are what is acted with."""
        for mine, new in zip(jax.tree.leaves(self._state), ray.get(references[0]), strict=True):
            np.copyto(mine, new)
        self._policy = (version, jax.tree.leaves(self._state)[0])

    def acted(self, version: int) -> tuple[float, float]:
        """When the first action with a version was, and the longest gap since the last call; waits for it."""
        with self._condition:
            found = self._condition.wait_for(lambda: version in self._first or self._error, DEADLINE_S)
            if not found or self._error:
                raise RuntimeError(f"no action with version {version}: {self._error or 'it did not come in time'}")
            gap, self._gap = self._gap, 0.0
            return self._first[version], gap

    def gap(self) -> float:
        """The longest gap since the last call."""
        with self._condition:
            gap, self._gap = self._gap, 0.0
            return gap

    def _set(self, version: int, params: Any) -> None:
        prepared = placed(self._prepare(params))
        self._policy = (version, jax.tree.leaves(prepared)[0])

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self._error = error
            self._condition.notify_all()

    def _run(self) -> None:
        x, last = np.ones((32, 32), np.float32), time.monotonic()
        while True:
            version, leaf = self._policy
            np.asarray(self._act(leaf, x))
            now = time.monotonic()
            with self._condition:
                self._gap, last = max(self._gap, now - last), now
                if version not in self._first:
                    self._first[version] = now
                    self._condition.notify_all()
            time.sleep(0.001)


class Learner:
    """Parameters that an update changes in place, and the ways in which they are published."""

    def __init__(self, policy: Policy, workers: list[Any], folder: Path, ways: Sequence[str]) -> None:
        self.workers = workers
        self.version = 0
        self.params = jax.block_until_ready(jax.jit(policy.init)(jax.random.key(0)))
        self._update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
        self._held: list[Any] = []
        publications = {
            "memory": Publication(folder / "a", self._tell),
            "bfloat16": Publication(folder / "b", self._tell, "bfloat16"),
            "object_store": Publication(folder / "c", lambda version, path: self._tell(version, pack(path))),
        }
        self._publishers = {
            way: ParamPublisher(folder / "kept", publication)
            for way, publication in publications.items()
            if way in ways
        }
        self.ways: dict[str, Callable[[], None]] = {
            way: partial(self._hand_to, publisher) for way, publisher in self._publishers.items()
        }
        if "minestudio" in ways:
            self.ways["minestudio"] = self._put

    def _hand_to(self, publisher: ParamPublisher) -> None:
        publisher.publish(self.version, self.params)

    def publish(self, way: str) -> tuple[float, float, float]:
        """One version; seconds until both act with it, seconds that the learner is held up, longest gap."""
        self.params = jax.block_until_ready(self._update(self.params))
        self.version += 1
        for worker in self.workers:
            ray.get(worker.gap.remote())
        began = time.monotonic()
        self.ways[way]()
        self.params = self._update(self.params)
        held_up = time.monotonic() - began
        acted = ray.get([worker.acted.remote(self.version) for worker in self.workers], timeout=DEADLINE_S)
        for publisher in self._publishers.values():
            publisher.flush(DEADLINE_S)
        return max(when for when, _ in acted) - began, held_up, max(gap for _, gap in acted)

    def rest(self, seconds: float) -> float:
        """The longest gap while nothing is published."""
        for worker in self.workers:
            ray.get(worker.gap.remote())
        time.sleep(seconds)
        return max(ray.get([worker.gap.remote() for worker in self.workers]))

    def update_alone(self) -> float:
        """The longest gap while the learner updates and publishes nothing."""
        for worker in self.workers:
            ray.get(worker.gap.remote())
        self.params = jax.block_until_ready(self._update(self.params))
        return max(ray.get([worker.gap.remote() for worker in self.workers]))

    def copy(self) -> float:
        """Seconds that a plain copy of the same bytes takes."""
        source = jax.device_get(self.params)
        began = time.monotonic()
        copied = jax.tree.map(np.copy, source)
        seconds = time.monotonic() - began
        assert jax.tree.leaves(copied)
        return seconds

    def close(self) -> None:
        for publisher in self._publishers.values():
            publisher.close()

    def _tell(self, version: int, where: Any) -> None:
        for worker in self.workers:
            worker.load_policy.remote(version, where)

    def _put(self) -> None:
        """A trainer of MineStudio's does this in its own thread."""
        reference = ray.put(jax.tree.leaves(jax.device_get(self.params)))
        self._held = [reference]
        for worker in self.workers:
            worker.load_state_dict.remote(self.version, [reference])


def measure(size: str, ways: Sequence[str], repetitions: int) -> None:
    policy = policy_of(size)
    leaves = jax.tree.leaves(jax.eval_shape(policy.init, jax.random.key(0)))
    count = sum(leaf.size for leaf in leaves)
    variables = {"JAX_PLATFORMS": "cpu", **HEAP_VARIABLES}
    actor = ray.remote(Worker).options(num_cpus=0, max_concurrency=4, runtime_env={"env_vars": variables})
    folder = MemoryFolder()
    workers: list[Any] = [actor.remote(size, ways) for _ in range(WORKERS)]
    learner = Learner(policy, workers, folder.path, ways)
    try:
        results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in learner.ways}
        copies: list[float] = []
        rests: list[float] = []
        updates: list[float] = []
        for repetition in range(repetitions + 1):
            copies.append(learner.copy())
            for way in learner.ways:
                result = learner.publish(way)
                if repetition:  # the first compiles
                    results[way].append(result)
            rests.append(learner.rest(statistics.median(copies) * 4))
            updates.append(learner.update_alone())
        copied = statistics.median(copies)
        print(f"{count:,} parameters, {count * 4 / 1e6:,.0f} MB, {len(leaves)} arrays, {repetitions} times:")
        print(
            f"  a copy takes {copied:.3f} s, gap at rest {_milliseconds(rests)}, "
            f"beside an update {_milliseconds(updates)}"
        )
        for way, its in results.items():
            latency, held_up, gap = zip(*its, strict=True)
            middle = statistics.median(latency)
            spread = f"({min(latency):.3f} to {max(latency):.3f})"
            print(
                f"  {way:17} {middle:6.3f} s {spread}, {middle / copied:.1f} copies;  "
                f"learner {_milliseconds(held_up)};  gap {_milliseconds(gap)}",
                flush=True,
            )
    finally:
        learner.close()
        for worker in workers:
            ray.kill(worker)
        folder.close()


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms (at most {max(seconds) * 1e3:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", default="1m,71m,248m", help="sizes, separated by commas")
    parser.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"--ways: there is no {', '.join(unknown)}; known are {', '.join(WAYS)}")
    jnp.zeros(1).block_until_ready()
    ray_cluster.start_ray(Config(rollout=RolloutConfig(num_cpus_per_worker=0)))
    try:
        for size in arguments.parameters.split(","):
            measure(size, ways, arguments.repetitions)
    finally:
        ray_cluster.stop_ray()


if __name__ == "__main__":
    main()
