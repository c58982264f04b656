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
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from tests.policies.vpt_golden import check_against_reference, close, memory_of

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def tiny(golden):
    return load_vpt(golden / "vpt_tiny.model", golden / "vpt_tiny.weights")


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_io_in_float32(golden, name):
    """vpt_tiny_io.npz and vpt_slim128_io.npz."""
    check_against_reference(golden, name, "float32")


def test_golden_io_in_the_form_for_cpus(golden):
    """With Winograd's convolutions, and images taken a few at a time: within the same tolerances."""
    check_against_reference(golden, "vpt_slim128", "float32", for_cpu=True)


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
