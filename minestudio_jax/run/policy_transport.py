"""On which way policy versions go to the rollout workers: `publish.transport`."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax
import ray

from minestudio_jax.config import Config
from minestudio_jax.policies.policy import Policy
from minestudio_jax.rollout.policy_loading import PackedVersion, pack
from minestudio_jax.rollout.ray_failures import MAKE_ROOM, STORE_FULL
from minestudio_jax.trainer.publisher import KEPT_VERSIONS, Publication, PublishFailure
from minestudio_jax.utils.memory_folder import SHARED_MEMORY, MemoryFolder, free_bytes

_FIRST_PAUSE_S = 0.1  # before another attempt to store a version; doubles
_LONGEST_PAUSE_S = 5.0

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
        params = jax.tree.leaves(policy.abstract_params())
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

    closed = threading.Event()
    cleanup.callback(closed.set)

    def on_published(version: int, path: Path) -> None:
        where = path if transport != "object_store" else _packed(version, path, config.run.stall_deadline_s, closed)
        if where is not None:
            tell(version, where)

    return Publication(directory, on_published, config.publish.dtype, shared)


def following_publication(config: Config, run_dir: Path) -> Publication:
    """What every host but the first takes part in, if all write together."""
    shared = _shared(run_dir)
    return Publication(shared, lambda version, path: None, config.publish.dtype, shared)


def _packed(version: int, path: Path, deadline_s: float, closed: threading.Event) -> PackedVersion | None:
    """A version in Ray's object store, as soon as that has room; None if the run is over before.

    Raises:
      PublishFailure: there was none within `deadline_s`, run.stall_deadline_s.
    """
    began, pause_s, said = time.monotonic(), _FIRST_PAUSE_S, False
    while not closed.is_set():
        try:
            return pack(path)
        except STORE_FULL as error:
            if time.monotonic() - began > deadline_s:
                raise PublishFailure(
                    f"policy version {version} found no room in Ray's object store within run.stall_deadline_s="
                    f"{deadline_s:g}: {MAKE_ROOM}"
                ) from error
            if not said:
                said = True
                log.warning(
                    "policy version %d waits for room in Ray's object store, and the workers for it (%s): %s",
                    version,
                    error,
                    MAKE_ROOM,
                )
        closed.wait(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return None


def _shared(run_dir: Path) -> Path:
    return run_dir / "published"


def _reserved_by_ray() -> float:
    """Bytes of this machine's memory that Ray's object store may still claim; it takes them as it fills."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["NodeID"] == here]
    return sum(node["Resources"].get("object_store_memory", 0.0) for node in nodes)
