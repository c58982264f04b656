"""How a policy version lies on disk: the one Orbax reader and writer that publisher and rollout share.

`<directory>/<version>/` holds an uncompressed Orbax PyTree checkpoint of the parameters. A version appears
under its name only when it is complete. `<directory>/best/` is the version with the best return so far,
which `score.json` in it says.

On a disk the arrays lie together in a few files. In memory (/dev/shm), where a file more costs nothing, each has one of
its own that is nothing but its numbers: they are read straight to where they are needed.

Orbax's handlers are called without its Checkpointer, which keeps the operation under way in variables of the process:
so versions are written and read while a checkpoint is, and by several threads at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from minestudio_jax.utils.memory_folder import SHARED_MEMORY
from minestudio_jax.utils.staging import StagingMemory

# Orbax takes 128 threads, each of which gets its turn on the cores before a worker acts again.
_READ_THREADS = 2
_WRITE_THREADS = 1
_PARTIAL = ".partial"
_REMOVED = ".removed"
_SCORE = "score.json"


def version_path(directory: Path, version: int) -> Path:
    return directory / f"{version:08d}"


def save_version(directory: Path, version: int, params: Any) -> Path:
    """Writes one version; an older one of the same number is replaced.

    Args:
      directory: of all versions; made if missing.
      version: its number.
      params: tree of arrays; only read.
    Returns:
      The version's folder.
    """
    path, partial = _paths(directory, version)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    together = not partial.is_relative_to(SHARED_MEMORY)
    handler = _handler(use_ocdbt=together)
    try:
        handler.save(partial, args=ocp.args.PyTreeSave(jax.device_get(params)))
        if together:
            handler.finalize(partial)
    finally:
        handler.close()
    _show(partial, path)
    return path


def save_parts(directory: Path, version: int, params: Any, first: bool, wait_for_all: Callable[[], None]) -> Path:
    """Writes one version of which each host has a part; all hosts call it.

    Args:
      directory: of all versions, which all hosts see; made if missing.
      version: its number.
      params: tree of jax.Arrays, of which each host writes what lies on its devices.
      first: whether this is the host that puts the parts together.
      wait_for_all: returns once all hosts have called it.
    Returns:
      The version's folder, which is complete on the first host when this returns.
    """
    path, partial = _paths(directory, version)
    partial.mkdir(parents=True, exist_ok=True)
    handler = _handler()
    try:
        handler.save(partial, args=ocp.args.PyTreeSave(params))
        wait_for_all()
        if first:
            handler.finalize(partial)
    finally:
        handler.close()
    if first:
        _show(partial, path)
    return path


def load_version(path: Path, abstract: Any, memory: StagingMemory | None = None) -> Any:
    """Reads one version to NumPy arrays, whatever device it was written from.

    Args:
      path: the version's folder.
      abstract: tree of jax.ShapeDtypeStruct; what the policy's `init` would give. Numbers that were written in another
        type are converted.
      memory: for arrays that have files of their own; None: new memory.
    Raises:
      OSError: it cannot be read.
      ValueError: the version does not fit the policy.
      FileNotFoundError: there is no such version, or no longer.
    """
    path = path.absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no policy version at {path}")
    restore = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), abstract)
    handler = _handler(memory)
    try:
        params = handler.restore(path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=restore))
    finally:
        handler.close()
        # Whatever reading it in part led to.
        if not path.is_dir():
            raise FileNotFoundError(f"the policy version at {path} was removed while it was read")

    def check(where: Any, wanted: Any, got: Any) -> None:
        if tuple(wanted.shape) != tuple(got.shape):
            raise ValueError(
                f"the policy version at {path} does not fit this policy: {jax.tree_util.keystr(where)} is "
                f"{got.shape}, expected {wanted.shape}; use the policy settings it was trained with"
            )

    jax.tree_util.tree_map_with_path(check, abstract, params)
    return params


def best_path(directory: Path) -> Path:
    """Where the policy with the best return so far lies, if there was one."""
    return directory / "best"


def keep_as_best(directory: Path, version: int, score: float) -> None:
    """Makes one version the best so far, unless the one there has a score at least as high.

    A process that was killed may have left one that is better than all that its last checkpoint knows of. The
    version's files are shared, not copied, and outlive it.
    """
    there = _best_score(directory)
    if there is not None and there >= score:
        return
    path, new, old = best_path(directory), directory / "best.new", directory / "best.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(version_path(directory, version), new, copy_function=os.link)
    with open(new / _SCORE, "w") as file:
        file.write(json.dumps(score))
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _best_score(directory: Path) -> float | None:
    """Of `best`; None if there is none, or it came without."""
    path = best_path(directory) / _SCORE
    return float(json.loads(path.read_text())) if path.exists() else None


def list_versions(directory: Path) -> list[int]:
    """Complete versions, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.is_dir() and p.name.isdigit())


def remove_versions(directory: Path, keep: int) -> None:
    """Deletes all but the newest `keep` versions."""
    for version in list_versions(directory)[: -keep or None]:
        _remove(version_path(directory, version))


def remove_newer_versions(directory: Path, version: int) -> None:
    """Deletes the versions above `version`, and what a process that was killed had only half written or deleted."""
    for newer in list_versions(directory):
        if newer > version:
            _remove(version_path(directory, newer))
    for leftover in (*directory.glob(f"*{_REMOVED}"), *directory.glob(f"*{_PARTIAL}")):
        shutil.rmtree(leftover, ignore_errors=True)


def _paths(directory: Path, version: int) -> tuple[Path, Path]:
    """Where a version lies, and where it is written."""
    path = version_path(directory.absolute(), version)
    return path, path.with_name(path.name + _PARTIAL)


def _show(partial: Path, path: Path) -> None:
    """Gives a version its name; an older one of the same number is replaced."""
    if path.exists():
        _remove(path)
    partial.rename(path)


def _handler(memory: StagingMemory | None = None, **settings: Any) -> Any:
    """Reads versions, to that memory or new one, and writes them."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, _NumpyHandler(memory or StagingMemory())),
        (jax.Array, ocp.type_handlers.ArrayHandler(enable_write_sharding_file=False)),  # nothing is read as one
    )
    # Trained numbers are as good as random: compressing them takes longer than writing them.
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry, **settings)


class _NumpyHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's, with few threads and few copies."""

    def __init__(self, memory: StagingMemory) -> None:
        super().__init__(deepcopy_host_arrays=False)  # nobody changes them while they are written
        self._memory = memory

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        return await super().serialize(values, _with_few_threads(infos, _WRITE_THREADS), args)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        files = [None if info.is_ocdbt_checkpoint else _file_of(info.parent_dir / info.name) for info in infos]
        if None in files:
            return await super().deserialize(_with_few_threads(infos, _READ_THREADS), args)
        return [file.read(arg.dtype, self._memory) for file, arg in zip(files, args, strict=True) if file is not None]


def _with_few_threads(infos: Any, threads: int) -> Any:
    context = ocp.type_handlers.get_ts_context(
        use_ocdbt=infos[0].is_ocdbt_checkpoint,
        file_io_concurrency_limit=threads,
        data_copy_concurrency_limit=threads,
    )
    for info in infos:
        info.ts_context = context
    return infos


class _File(NamedTuple):
    """Nothing but the numbers of an array of that shape and type, in C order."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, dtype: Any, memory: StagingMemory) -> np.ndarray:
        """The array, converted to `dtype`, in that memory.

        Raises:
          OSError: the file cannot be read, or has another size.
        """
        array = memory.empty(self.shape, self.dtype)
        with open(self.path, "rb") as file:
            found = file.readinto(array.reshape(-1).view(np.uint8).data)
        if found != array.nbytes:
            raise OSError(f"{self.path} has {found} bytes, expected {array.nbytes}")
        if self.dtype == dtype:
            return array
        converted = memory.empty(self.shape, dtype)
        np.copyto(converted, array, casting="unsafe")
        return converted


def _file_of(folder: Path) -> _File | None:
    """Of a Zarr array that is one uncompressed chunk; None if it is not.

    See https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html.
    """
    layout = json.loads((folder / ".zarray").read_text())
    shape, name = tuple(layout["shape"]), layout["dimension_separator"].join("0" for _ in layout["shape"]) or "0"
    whole = layout["chunks"] == layout["shape"] and layout["order"] == "C"
    if not whole or layout["compressor"] is not None or layout["filters"] is not None or not (folder / name).exists():
        return None
    return _File(folder / name, shape, np.dtype(layout["dtype"]))


def _remove(path: Path) -> None:
    """Deletes a version; its name goes first, by which a reader knows."""
    removed = path.with_name(path.name + _REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
