"""How a rollout worker gets the newest policy version, beside its acting."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions

from minestudio_jax.policies.policy import Params
from minestudio_jax.utils import memory_folder, policy_store
from minestudio_jax.utils.staging import StagingMemory

_SWITCH_INTERVAL_S = 5e-4
_FETCH_DEADLINE_S = 60.0
_RETRY_PAUSE_S = 5.0  # before a version that could not be read is read again
_JOIN_DEADLINE_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedVersion:
    """The files of a version in Ray's object store, for machines that share no file system.

    Attributes:
      files: reference of a dict, path within the version's folder -> uint8 [bytes].
    """

    files: Any


def let_acting_go_on() -> None:
    """Keeps Python from holding up a thread that acts while versions are loaded; for when all is imported and built."""
    # Its 5 ms are what one thread may keep another waiting for, and acting hands over several times a step.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # A collection looks at every object of JAX, Flax, Orbax and Ray, for which all threads wait a tenth of a second.
    gc.freeze()


def pack(path: Path) -> PackedVersion:
    """Puts the files of a version into the object store; they stay for as long as somebody holds the result."""
    files = {str(f.relative_to(path)): _mapped(f) for f in sorted(path.rglob("*")) if f.is_file()}
    return PackedVersion(ray.put(files))


def _mapped(file: Path) -> np.ndarray:
    # Ray copies it from the file's pages straight into the object store. Nothing cannot be mapped.
    return np.asarray(np.memmap(file, np.uint8, "r")) if file.stat().st_size else np.zeros(0, np.uint8)


def load(where: Path | PackedVersion, abstract: Any, memory: StagingMemory) -> Params:
    """Parameters of a version, NumPy arrays in that memory; see `policy_store.load_version`.

    Raises:
      FileNotFoundError: it is no longer there.
      TimeoutError: it did not come from another machine in time.
      OSError: there was no room for its files, or they could not be read.
      ValueError: it does not fit the policy.
    """
    if isinstance(where, Path):
        return policy_store.load_version(where, abstract, memory)
    try:
        files: dict[str, np.ndarray] = ray.get(where.files, timeout=_FETCH_DEADLINE_S)
    except ray.exceptions.ObjectLostError as error:
        raise FileNotFoundError(f"it was lost on its way: {error}") from error
    # Orbax reads files. They lie in memory if there is room, which another worker may take at the same time.
    if memory_folder.free_bytes() > 2 * sum(content.nbytes for content in files.values()):
        try:
            with closing(memory_folder.MemoryFolder()) as folder:
                return _load_files(files, folder.path, abstract, memory)
        except OSError as error:
            log.info("a policy version goes through the disk, %s has no room: %s", memory_folder.SHARED_MEMORY, error)
    with tempfile.TemporaryDirectory(prefix="minestudio_jax-") as on_disk:
        return _load_files(files, Path(on_disk), abstract, memory)


def _load_files(files: dict[str, np.ndarray], folder: Path, abstract: Any, memory: StagingMemory) -> Params:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.data)
    return policy_store.load_version(folder, abstract, memory)


class PolicyLoader:
    """Loads versions in a thread of its own; the newest wins, and those between are never read.

    Args:
      abstract: parameters of the policy, jax.ShapeDtypeStructs.
      on_loaded: called from the thread with (version, parameters).
      on_error: called from the thread with what makes loading impossible; nothing is loaded any more then.
    """

    def __init__(
        self, abstract: Any, on_loaded: Callable[[int, Params], None], on_error: Callable[[Exception], None]
    ) -> None:
        self._abstract = abstract
        self._on_loaded, self._on_error = on_loaded, on_error
        self._condition = threading.Condition()
        self._offered: tuple[int, Path | PackedVersion] | None = None
        self._newest = -1
        self._closed = False
        # Of one version while it is acted with, and of the one that is read meanwhile.
        self._memory = StagingMemory()
        self._thread = threading.Thread(target=self._run, name="policy-loader", daemon=True)
        self._thread.start()

    def offer(self, version: int, where: Path | PackedVersion) -> None:
        """Says where a version is to be had, and returns; one that is not newer than all before is ignored."""
        with self._condition:
            if version > self._newest:
                self._newest, self._offered = version, (version, where)
                self._condition.notify_all()

    def close(self) -> None:
        """Ends the thread after what it is reading."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(_JOIN_DEADLINE_S)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._offered is not None or self._closed)
                if self._closed or self._offered is None:
                    return
                (version, where), self._offered = self._offered, None
            try:
                self._on_loaded(version, load(where, self._abstract, self._memory))
            except FileNotFoundError as error:
                # Only a newer version's arrival removes one, and that one is offered next.
                log.warning("policy version %d was gone before it could be read: %s", version, error)
            except OSError as error:  # such as a TimeoutError, or a full disk: others may make room
                log.warning("policy version %d could not be read and is asked for again: %s", version, error)
                with self._condition:
                    self._condition.wait_for(lambda: self._offered is not None or self._closed, _RETRY_PAUSE_S)
                    self._offered = self._offered or (version, where)
            except Exception as error:  # told by the worker's next report
                self._on_error(error)
                return
