"""The golden networks and what the reference makes of them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.policies import heads
from minestudio_jax.policies.pretrained import load_vpt, spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_transformer import BlockMemory

# float32 on the CPU, and float64, against the reference evaluated in float64 (whose log-softmax is float32).
TOLERANCE = {"float32": {"logits": 3e-4, "rest": 2e-4}, "float64": {"logits": 1e-5, "rest": 2e-6}}


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


def check_against_reference(golden: Path, name: str, dtype: str, for_cpu: bool = False) -> None:
    """All outputs and all memory of a network over its chunks, resets inside and memory carried from one to the next."""
    policy, params = load_vpt(golden / f"{name}.model", golden / f"{name}.weights")
    policy = VPTPolicy(spec_of(policy.shape), policy.shape, dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    if for_cpu:
        policy, prepare = policy.for_cpu()
        params = prepare(params)
        assert params["network"]["encoder"]["stack_2"]["block_0"]["conv0"]["kernel"].ndim == 3
    data, layers = np.load(golden / f"{name}_io.npz"), policy.shape.layers

    @jax.jit
    def run(params, image, first, memory, action):
        latent, _ = policy.network(params).latent(image, first, memory)
        output, memory = policy.apply(params, {"image": image}, first, memory)
        shifted = {
            name: jax.nn.log_softmax(head + 0.3 * jnp.sin(0.7 * jnp.arange(head.shape[-1])))
            for name, head in output.logits.items()
        }
        of_heads = {
            "mode": heads.mode(output.logits),
            "log_prob": heads.log_prob(output.logits, action),
            "entropy": heads.entropy(output.logits),
            "kl": heads.kl(output.logits, shifted),
        }
        return latent, output, of_heads, memory

    memory = memory_of(data, "init_", layers, dtype)
    logits_atol, atol = TOLERANCE[dtype]["logits"], TOLERANCE[dtype]["rest"]
    assert len(chunks(data)) >= 3
    for i in chunks(data):
        image, first = jnp.asarray(data[f"c{i}_img"]), jnp.asarray(data[f"c{i}_first"])
        action = {name: jnp.asarray(data[f"c{i}_action_{name}"], jnp.int32) for name in ("buttons", "camera")}
        latent, output, of_heads, memory = run(params, image, first, memory, action)
        close(latent, data[f"c{i}_latent"], atol, f"latent of chunk {i}")
        buttons, camera = output.logits["buttons"], output.logits["camera"]
        close(buttons[..., data["cols"]], data[f"c{i}_logits_buttons_cols"][:, :, 0], logits_atol, f"buttons {i}")
        close(camera, data[f"c{i}_logits_camera"][:, :, 0], logits_atol, f"camera {i}")
        close(output.value, data[f"c{i}_vpred_denorm"][..., 0], atol, f"value {i}")
        for component in ("buttons", "camera"):
            np.testing.assert_array_equal(of_heads["mode"][component], data[f"c{i}_argmax_{component}"])
        close(of_heads["log_prob"], data[f"c{i}_logprob"], 2 * logits_atol, f"log-probability {i}")
        close(of_heads["entropy"], data[f"c{i}_entropy"], 2 * logits_atol, f"entropy {i}")
        close(of_heads["kl"], data[f"c{i}_kl_to_shifted"][..., 0], logits_atol, f"divergence {i}")
        for layer, (found, wanted) in enumerate(zip(memory, memory_of(data, f"c{i}_out_", layers), strict=True)):
            np.testing.assert_array_equal(found.mask, wanted.mask)
            close(found.keys, wanted.keys, atol, f"keys of block {layer} after chunk {i}")
            close(found.values, wanted.values, atol, f"values of block {layer} after chunk {i}")
