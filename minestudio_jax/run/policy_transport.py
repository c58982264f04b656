"""On which way policy versions go to the rollout workers: `publish.transport`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax
import ray

from minestudio_jax.config import Config
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.policy_loading import PackedVersion, pack
from minestudio_jax.trainer.publisher import KEPT_VERSIONS, Publication
from minestudio_jax.utils.memory_folder import SHARED_MEMORY, MemoryFolder, free_bytes

log = logging.getLogger(__name__)


def transport_of(config: Config) -> str:
    """tmpfs, directory or object_store."""
    if config.publish.transport != "auto":
        return config.publish.transport
    return "object_store" if config.run.ray_address else "tmpfs"


def make_publication(
    config: Config,
    policy: Policy,
    run_dir: Path,
    tell: Callable[[int, Path | PackedVersion], None],
    cleanup: ExitStack,
) -> Publication:
    """Where versions are written and how workers are told. Ray must have been initialised.

    Args:
      policy: whose parameters they are.
      run_dir: of the run; `published/` in it is used where memory has no room or is not wanted, and by hosts that write
        together.
      tell: called with a version's number and where workers find it.
      cleanup: removes what was made.
    """
    shared = _shared(run_dir)
    shutil.rmtree(shared, ignore_errors=True)  # of a process that was killed
    cleanup.callback(shutil.rmtree, shared, ignore_errors=True)
    transport, directory = transport_of(config), shared
    if transport != "directory":
        params = jax.tree.leaves(jax.eval_shape(policy.init, jax.random.key(0)))
        # Besides those that are kept, one is being written and one removed.
        wanted = (KEPT_VERSIONS + 2) * sum(leaf.size * leaf.dtype.itemsize for leaf in params)
        free = free_bytes() - _reserved_by_ray()
        if free < wanted:
            log.info(
                "%s has %d MB that Ray's object store does not claim, policy versions take %d: they go through %s",
                SHARED_MEMORY,
                max(free, 0) // 10**6,
                wanted // 10**6,
                shared,
            )
        else:
            folder = MemoryFolder()
            cleanup.callback(folder.close)
            directory = folder.path

    def on_published(version: int, path: Path) -> None:
        tell(version, pack(path) if transport == "object_store" else path)

    return Publication(directory, on_published, config.publish.dtype, shared)


def following_publication(config: Config, run_dir: Path) -> Publication:
    """What every host but the first takes part in, if all write together."""
    shared = _shared(run_dir)
    return Publication(shared, lambda version, path: None, config.publish.dtype, shared)


def _shared(run_dir: Path) -> Path:
    return run_dir / "published"


def _reserved_by_ray() -> float:
    """Bytes of this machine's memory that Ray's object store may still claim; it takes them as it fills."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["NodeID"] == here]
    return sum(node["Resources"].get("object_store_memory", 0.0) for node in nodes)
