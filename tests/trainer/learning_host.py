"""One of several processes that learn together, or the only one, from fragments that all of them have.

python -m tests.trainer.learning_host OUT NUM_PROCESSES INDEX PORT MESH: what comes out is in OUT/params.npz and
OUT/metrics.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer.batch import Share
from minestudio_jax.trainer.global_arrays import rows_of_hosts
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import Publication
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.timing import Stopwatch
from tests.trainer.fragments import LENGTH, SPEC, make_fragments

CONFIG = TrainerConfig(
    batch_size_per_device=2, batches_per_iteration=2, context_length=4, epochs_per_iteration=2, learning_rate=1e-2,
    discount=0.9, save_interval=2,
)  # fmt: skip


def main(out: Path, num_processes: int, index: int, port: str, mesh: str) -> None:
    if num_processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, index, cluster_detection_method="deactivate")
    assert jax.process_count() == num_processes
    policy = ImpalaPolicy(SPEC, channels=(), hidden_size=32)  # large enough to be split
    behaviour = policy.init(jax.random.key(1))
    told: list[int] = []
    (out / "logs").mkdir(parents=True, exist_ok=True)
    sent = out / "published"
    publication = Publication(sent, lambda version, path: told.append(version), shared=sent)
    config = dataclasses.replace(CONFIG, mesh=mesh)
    trainer = PPOTrainer(config, policy, SPEC, LENGTH, out, 0, publication)
    number = iter(range(trainer.counters.iteration, 1000))

    def source(timeout_s: float, ahead: Callable[[], int]) -> Share:
        whole = Share.whole(make_fragments(policy, behaviour, 4 * jax.device_count(), seed=next(number)))
        rows = rows_of_hosts(trainer.batch_sharding, len(whole.metadata))[index]
        return Share([whole.fragments[row] for row in rows], rows, whole.metadata)

    trainer.open(source)
    metrics = []
    for _ in range(3):
        loaded = trainer.wait_for_batch(60.0)
        assert loaded is not None
        assert loaded.steps == 4 * jax.device_count() * LENGTH
        metrics.append(trainer.iterate(loaded, Stopwatch()))
        trainer.checkpoint(Stopwatch())
    trainer.checkpoint(Stopwatch(), force=True)
    trainer.flush_published(60.0)
    trainer.close()
    if index == 0:
        assert told == sorted(told)
        assert told[-1] == trainer.counters.policy_version
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
        kept, params = (
            policy_store.load_version(policy_store.version_path(folder, told[-1]), abstract)
            for folder in (out / "versions", sent)
        )
        jax.tree.map(np.testing.assert_array_equal, kept, params)
        np.savez(out / "params.npz", *jax.tree.leaves(params))
        (out / "metrics.json").write_text(json.dumps([metrics, trainer.counters.iteration]))
    if num_processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
