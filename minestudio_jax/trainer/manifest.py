"""What a checkpoint's files were when it was written: sizes and SHA-256 of each, in `manifest.json` beside them.

Orbax renames a checkpoint once it is complete, so none is half there. But of one that was damaged afterwards it gives
other numbers without a word: TensorStore's checksums cover its index, not the arrays, and the JSON files have none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

NAME = "manifest.json"
MARK = {"manifest": NAME}  # in Orbax's metadata of a checkpoint: this one was given a manifest
_ORBAX = "_CHECKPOINT_METADATA"


class Damaged(Exception):
    """Files of a checkpoint are not what was written; names the first one."""


class PathWithManifest(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a checkpoint until it is complete: it gets its manifest before its name, on the first host.

    So a kill at any moment leaves a checkpoint with a manifest or none. The time for it is spent behind the learner.
    """

    _checkpoint_metadata_store: Any

    async def finalize(self) -> None:
        # Orbax would write the time of the commit to its metadata, which is to be part of the manifest.
        metadata, self._checkpoint_metadata_store = self._checkpoint_metadata_store, None
        if metadata is not None:
            await asyncio.to_thread(metadata.wait_until_finished)
        await asyncio.to_thread(write, Path(self.get()))
        await super().finalize()
        await asyncio.to_thread(_sync_folder, Path(self.get_final()).parent)


def write(folder: Path) -> None:
    """Writes the manifest of a folder's files; all of them are safe on the disk when this returns."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            files[str(path.relative_to(folder))] = _facts(file)
            os.fsync(file.fileno())
    with open(folder / NAME, "w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)


def verify(folder: Path) -> bool:
    """Compares a checkpoint's files with its manifest, which reads all of them.

    Returns:
      True if they are the same; False if it was written before checkpoints had manifests, so that nobody can tell.
    Raises:
      Damaged: a file is missing, or is not the one that was written.
    """
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        if _older(folder):
            return False
        raise Damaged(f"{NAME} is missing") from None
    except OSError as error:
        raise Damaged(f"{NAME} cannot be read ({error.strerror})") from error
    try:
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        for name, written in files.items():
            _compare(folder, name, written)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{NAME} is not what was written ({error})") from error
    return True


def _compare(folder: Path, name: str, written: dict[str, Any]) -> None:
    try:
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != written["bytes"]:
                raise Damaged(f"{name} has {size} bytes instead of {written['bytes']}")
            if _facts(file) != written:
                raise Damaged(f"{name} is not what was written (its SHA-256 differs)")
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from error


def _older(folder: Path) -> bool:
    """Whether Orbax calls it complete, and does not say that it was given a manifest."""
    try:
        custom = json.loads((folder / _ORBAX).read_bytes()).get("custom_metadata")
    except (OSError, ValueError, AttributeError):
        return False
    return not custom or MARK.items().isdisjoint(custom.items())


def _facts(file: Any) -> dict[str, Any]:
    """Size and hash of an open file."""
    return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
