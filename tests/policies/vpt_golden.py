"""The golden networks and what the reference makes of them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from minestudio_jax.policies.vpt import BlockMemory


def memory_of(data: Any, prefix: str, layers: int, dtype: Any = jnp.float32) -> tuple[BlockMemory, ...]:
    """Memory stored as `{prefix}L{l}_mask`, `_K` and `_V`."""
    return tuple(
        BlockMemory(
            jnp.asarray(data[f"{prefix}L{i}_mask"][:, 0]),
            jnp.asarray(data[f"{prefix}L{i}_K"], dtype),
            jnp.asarray(data[f"{prefix}L{i}_V"], dtype),
        )
        for i in range(layers)
    )


def chunks(data: Any) -> list[int]:
    return [i for i in range(10) if f"c{i}_img" in data.files]


def rebuilt(golden: Path, name: str, folder: Path) -> Path:
    """A golden container, put together from its own bytes without the tensors' and those of vpt_tiny.weights.

    The three containers hold the same tensors; what is stored of the other two is what they do not share.
    """
    with zipfile.ZipFile(golden / f"{name}.skeleton.zip") as skeleton:
        layout, rest = json.loads(skeleton.read("layout.json")), skeleton.read("rest")
    with zipfile.ZipFile(golden / "vpt_tiny.weights") as archive:
        tensors = {entry.split("/data/")[1]: archive.read(entry) for entry in archive.namelist() if "/data/" in entry}
    content, at = b"", 0
    for number, length in enumerate(layout["lengths"]):
        content += rest[at : at + length]
        at += length
        if number < len(layout["tensors"]):
            content += tensors[layout["tensors"][number]]
    assert hashlib.sha256(content).hexdigest() == layout["sha256"], "not the reference's file any more"
    path = folder / name
    path.write_bytes(content)
    return path


def close(found: Any, wanted: Any, atol: float, what: str) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=atol, err_msg=what)
