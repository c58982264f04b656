"""VPT against the reference's numbers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies import heads
from minestudio_jax.policies.pretrained import flattened, layout, load_vpt, spec_of
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.policies.vpt import VPTPolicy, VPTShape
from tests.policies.vpt_golden import chunks, close, memory_of

pytestmark = pytest.mark.optimized

# float32 on the CPU, and float64, against the reference evaluated in float64 (whose log-softmax is float32).
TOLERANCE = {"float32": {"logits": 3e-4, "rest": 2e-4}, "float64": {"logits": 1e-5, "rest": 2e-6}}


@pytest.fixture(scope="module")
def tiny(golden):
    return load_vpt(golden / "vpt_tiny.model", golden / "vpt_tiny.weights")


def check_against_reference(golden, name, dtype, for_cpu=False):
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
    def run(params, image, first, memory):
        latent, _ = policy.network(params).latent(image, first, memory)
        return latent, policy.apply(params, {"image": image}, first, memory)

    memory = memory_of(data, "init_", layers, dtype)
    logits_atol, atol = TOLERANCE[dtype]["logits"], TOLERANCE[dtype]["rest"]
    assert len(chunks(data)) >= 3
    for i in chunks(data):
        image, first = jnp.asarray(data[f"c{i}_img"]), jnp.asarray(data[f"c{i}_first"])
        latent, (output, memory) = run(params, image, first, memory)
        close(latent, data[f"c{i}_latent"], atol, f"latent of chunk {i}")
        buttons, camera = output.logits["buttons"], output.logits["camera"]
        close(buttons[..., data["cols"]], data[f"c{i}_logits_buttons_cols"][:, :, 0], logits_atol, f"buttons {i}")
        close(camera, data[f"c{i}_logits_camera"][:, :, 0], logits_atol, f"camera {i}")
        close(output.value, data[f"c{i}_vpred_denorm"][..., 0], atol, f"value {i}")
        for component in ("buttons", "camera"):
            mode = heads.mode(output.logits)[component]
            np.testing.assert_array_equal(mode, data[f"c{i}_argmax_{component}"])
        action = {name: jnp.asarray(data[f"c{i}_action_{name}"], jnp.int32) for name in ("buttons", "camera")}
        close(heads.log_prob(output.logits, action), data[f"c{i}_logprob"], 2 * logits_atol, f"log-probability {i}")
        close(heads.entropy(output.logits), data[f"c{i}_entropy"], 2 * logits_atol, f"entropy {i}")
        shifted = {
            name: jax.nn.log_softmax(head + 0.3 * jnp.sin(0.7 * jnp.arange(head.shape[-1])))
            for name, head in output.logits.items()
        }
        close(heads.kl(output.logits, shifted), data[f"c{i}_kl_to_shifted"][..., 0], logits_atol, f"divergence {i}")
        for layer, (found, wanted) in enumerate(zip(memory, memory_of(data, f"c{i}_out_", layers), strict=True)):
            np.testing.assert_array_equal(found.mask, wanted.mask)
            close(found.keys, wanted.keys, atol, f"keys of block {layer} after chunk {i}")
            close(found.values, wanted.values, atol, f"values of block {layer} after chunk {i}")


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_io_in_float32(golden, name):
    """vpt_tiny_io.npz and vpt_slim128_io.npz."""
    check_against_reference(golden, name, "float32")


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_io_in_float64(golden, name):
    with jax.enable_x64(True):
        check_against_reference(golden, name, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_io_in_the_form_for_cpus(golden, dtype):
    """With Winograd's convolutions, and images taken a few at a time: within the same tolerances."""
    with jax.enable_x64(dtype == "float64"):
        check_against_reference(golden, "vpt_slim128", dtype, for_cpu=True)


def test_golden_activations(golden, tiny):
    """vpt_tiny_io.npz, act_*: every stage of the network, so that two faults cannot cancel."""
    policy, params = tiny
    data = np.load(golden / "vpt_tiny_io.npz")
    memory = memory_of(data, "c0_out_", policy.shape.layers)
    image, first = jnp.asarray(data["c1_img"]), jnp.asarray(data["c1_first"])

    @jax.jit
    def stages(params):
        network, found = policy.network(params), {}
        encoder = network.encoder
        x = image.reshape(-1, *image.shape[2:]) / 255.0
        for i in range(encoder.num_stacks):
            x = getattr(encoder, f"stack_{i}")(x)
            found[f"cnn_stack{i}_NCHW"] = x.transpose(0, 3, 1, 2)
        x = encoder.dense(x.reshape(x.shape[0], -1))
        found["cnn_out_256"] = x
        x = encoder.linear(x).reshape(*first.shape, -1)
        found["img_process"] = x
        for i in range(policy.shape.layers):
            block = getattr(network, f"block_{i}")
            normed = block.pre_norm(x)
            found[f"block{i}_attn_out"] = normed + block.attn(normed, first, memory[i])[0]
            x = found[f"block{i}_out"] = block(x, first, memory[i])[0]
        found["lastlayer"] = network.last(jax.nn.relu(x))
        found["final_ln"] = network.final_norm(found["lastlayer"])
        return found

    for name, value in stages(params).items():
        wanted = data[f"c1_act_{name}"]
        close(np.reshape(value, wanted.shape), wanted, 2e-4, name)


def test_golden_gradients(golden, tiny):
    """vpt_tiny_grads.npz: of every parameter, to 1e-3 relative L2."""
    policy, params = tiny
    params = jax.tree.map(jnp.asarray, params)
    io, data = np.load(golden / "vpt_tiny_io.npz"), np.load(golden / "vpt_tiny_grads.npz")
    memory = memory_of(io, "c0_out_", policy.shape.layers)
    action = {name: jnp.asarray(io[f"c1_action_{name}"], jnp.int32) for name in ("buttons", "camera")}

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        output, _ = policy.apply(params, {"image": io["c1_img"]}, jnp.asarray(io["c1_first"]), memory)
        mean, scale = ValueNormalizer().moments(params["value_statistics"])
        value = (output.value - jax.lax.stop_gradient(mean)) / jax.lax.stop_gradient(scale)
        return (
            -heads.log_prob(output.logits, action).mean()
            + 0.5 * jnp.square(value - data["c1_target"]).mean()
            - 0.01 * heads.entropy(output.logits).mean()
        )

    found_loss, gradient = loss(params)
    assert float(found_loss) == pytest.approx(float(data["c1_loss"]), abs=2e-4)
    flat, checked = flattened(gradient), 0
    for tensor in layout(policy.shape):
        found = tensor.to_torch(flat[tensor.path])
        if f"c1/{tensor.name}" not in data.files:
            assert "normalizer" in tensor.name
            np.testing.assert_array_equal(found, 0)
            continue
        wanted = data[f"c1/{tensor.name}"]
        if "pi_head.buttons" in tensor.name:
            found = found[data["rows"]]
        error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12)
        assert error < 1e-3, tensor.name
        checked += 1
    assert checked == 99


@pytest.mark.parametrize("width", [1, 2, 3])
def test_golden_state_dicts_of_the_published_sizes(golden, width):
    """state_dict_1x.json, 2x and 3x: every name and shape, and the number of parameters."""
    shape = VPTShape.of_width(width)
    policy = VPTPolicy(spec_of(shape), shape)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    wanted = json.loads((golden / f"state_dict_{width}x.json").read_text())
    tensors = {tensor.name: tensor for tensor in layout(shape)}
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {k: v[0] for k, v in wanted.items()}
    assert {tensor.path for tensor in tensors.values()} == set(flattened(params))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == {1: 70_998_654, 2: 248_495_294, 3: 532_504_318}[width]
