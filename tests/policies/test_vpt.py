"""VPT against the reference's numbers, and what must hold of its memory whatever the numbers."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.env import ArraySpec
from minestudio_jax.policies import heads
from minestudio_jax.policies.pretrained import flattened, layout, load_vpt, spec_of
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.policies.vpt import VPTPolicy, VPTShape
from tests.policies.vpt_golden import chunks, close, memory_of

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


def test_the_form_for_cpus_never_computes_in_bfloat16(small):
    """And its memory is the same: one may go on where the other stopped."""
    *_, image, first = small
    shape = dataclasses.replace(SHAPE, channels=(16, 16))
    exact, coarse = (VPTPolicy(spec_of(shape), shape, dtype) for dtype in ("float32", "bfloat16"))
    acting, prepare = coarse.for_cpu()
    params = exact.init(jax.random.key(0))
    assert prepare(params)["network"]["encoder"]["stack_1"]["firstconv"]["kernel"].shape == (36, 16, 16)
    wanted = exact.apply(params, {"image": image}, first, exact.initial_state(len(first)))
    found = acting.apply(prepare(params), {"image": image}, first, coarse.initial_state(len(first)))
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


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


SHAPE = VPTShape(24, 3, 2, 6, 2, (4, 4), (16, 16))
STEPS = 14


@pytest.fixture(scope="module")
def small():
    """A policy whose memory of 6 frames is shorter than the sequence, its parameters, and a sequence with resets."""
    policy = VPTPolicy(spec_of(SHAPE), SHAPE)
    params = jax.jit(policy.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (2, STEPS, 16, 16, 3)).astype(np.uint8)
    first = np.zeros((2, STEPS), bool)
    first[0, [0, 4, 5]] = True
    first[1, [9, STEPS - 1]] = True
    return policy, params, jax.jit(policy.apply), image, first


def run(small, cuts, image=None, first=None, memory=None):
    policy, params, apply, own_image, own_first = small
    image, first = own_image if image is None else image, own_first if first is None else first
    memory = memory or policy.initial_state(image.shape[0])
    logits, values = [], []
    for begin, end in zip([0, *cuts], [*cuts, image.shape[1]], strict=True):
        output, memory = apply(params, {"image": image[:, begin:end]}, first[:, begin:end], memory)
        logits.append(output.logits["buttons"])
        values.append(output.value)
    return np.concatenate(logits, axis=1), np.concatenate(values, axis=1), memory


def test_a_trajectory_gives_the_same_in_every_cut(small):
    """D-09: as a whole, step by step as when acting, and every cut in two; resets lie inside, before and behind the cuts."""
    logits, values, memory = run(small, [])
    for cuts in ([*range(1, STEPS)], *([i] for i in range(1, STEPS)), [3, 4, 10]):
        other_logits, other_values, other_memory = run(small, cuts)
        np.testing.assert_allclose(other_logits, logits, atol=2e-5)
        np.testing.assert_allclose(other_values, values, atol=2e-5)
        for one, other in zip(jax.tree.leaves(other_memory), jax.tree.leaves(memory), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_nothing_of_another_episode_is_seen(small):
    """Other images before a reset change nothing from it on; the same ones without a reset change what follows."""
    _policy, _, _, image, first = small
    changed = image.copy()
    changed[0, :4] = 255 - changed[0, :4]
    one, other = run(small, [])[0][0], run(small, [], image=changed)[0][0]
    np.testing.assert_array_equal(one[4:], other[4:])
    assert np.abs(one[:4] - other[:4]).max() > 1e-4
    without = np.zeros_like(first)
    one, other = run(small, [], first=without)[0][0], run(small, [], image=changed, first=without)[0][0]
    assert np.abs(one[4] - other[4]).max() > 1e-5


def test_a_reset_is_the_same_as_an_empty_memory(small):
    policy, _, _, _image, _ = small
    no, at_start = np.zeros((2, STEPS), bool), np.zeros((2, STEPS), bool)
    at_start[:, 0] = True
    full = run(small, [])[2]
    one = run(small, [], first=no, memory=policy.initial_state(2))
    other = run(small, [], first=at_start, memory=full)
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    for fresh, reset in zip(one[2], other[2], strict=True):
        np.testing.assert_array_equal(fresh.mask, reset.mask)


def test_a_frame_sees_so_many_frames_and_no_more(small):
    """Per block M frames, itself included: with two blocks a change reaches 2 (M - 1) steps on, and not one further."""
    _policy, _params, _apply, image, _ = small
    long = np.concatenate([image, image[:, ::-1]], axis=1)
    changed = long.copy()
    changed[:, 3] = 255 - changed[:, 3]
    no = np.zeros(long.shape[:2], bool)
    one, other = run(small, [], image=long, first=no)[0], run(small, [], image=changed, first=no)[0]
    differs = np.abs(one - other).max(axis=(0, 2)) > 0
    reach = 3 + 2 * (SHAPE.memory - 1)
    assert not differs[:3].any()
    assert differs[3]
    assert differs[reach - 1 : reach + 1].any()
    assert not differs[reach + 1 :].any()


def test_rows_of_a_batch_do_not_touch_each_other(small):
    """D-10: so padding changes nothing."""
    policy, params, apply, image, first = small
    alone, _ = apply(params, {"image": image[:1]}, first[:1], policy.initial_state(1))
    both, _ = apply(params, {"image": image}, first, policy.initial_state(2))
    np.testing.assert_allclose(alone.logits["camera"][0], both.logits["camera"][0], atol=1e-5)


def test_bfloat16_computes_nearly_the_same_and_keeps_what_must_be_exact(small):
    policy, params, apply, image, first = small
    half = VPTPolicy(spec_of(SHAPE), SHAPE, "bfloat16")
    output, memory = jax.jit(half.apply)(params, {"image": image}, first, half.initial_state(2))
    exact, _ = apply(params, {"image": image}, first, policy.initial_state(2))
    assert {leaf.dtype for leaf in jax.tree.leaves((output, params))} == {jnp.dtype("float32")}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(memory)} == {"float32", "bool"}
    error = np.abs(output.logits["camera"] - exact.logits["camera"]).max()
    assert 0 < error < 0.1
    np.testing.assert_allclose(np.exp(output.logits["buttons"]).sum(-1), 1.0, rtol=1e-4)


def test_computing_activations_again_changes_no_gradient(small):
    policy, params, _, image, first = small
    again = VPTPolicy(spec_of(SHAPE), SHAPE, remat=True)

    def gradient(policy):
        def loss(params):
            return (
                policy.apply(params, {"image": image}, first, policy.initial_state(2))[0].logits["camera"][..., 3].sum()
            )

        return jax.jit(jax.grad(loss))(params)

    for one, other in zip(*(jax.tree.leaves(gradient(p)) for p in (policy, again)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


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


def test_fresh_weights_have_the_norms_of_the_reference():
    """Every output unit of a fan-in layer has one norm; heads are drawn as PyTorch does."""
    policy = VPTPolicy(spec_of(SHAPE), SHAPE)
    network = jax.jit(policy.init)(jax.random.key(1))["network"]
    a = (2 * SHAPE.layers) ** -0.25
    for path, norm in (
        (("encoder", "stack_0", "firstconv"), 1.0),
        (("encoder", "stack_1", "block_1", "conv0"), 1.5**0.25),
        (("encoder", "dense", "linear"), 1.4),
        (("block_0", "attn", "q"), 0.1),
        (("block_0", "attn", "k"), 0.2),
        (("block_1", "attn", "v"), a),
        (("block_1", "attn", "proj"), a),
        (("block_1", "mlp1", "linear"), a**2),
    ):
        layer = network
        for key in path:
            layer = layer[key]
        norms = np.linalg.norm(np.asarray(layer["kernel"]).reshape(-1, layer["kernel"].shape[-1]), axis=0)
        np.testing.assert_allclose(norms, norm, rtol=1e-5, err_msg="/".join(path))
    bound = SHAPE.hidsize**-0.5
    head = np.abs(network["pi"]["buttons"]["kernel"])
    assert 0.95 * bound < head.max() <= bound
    assert np.abs(network["pi"]["buttons"]["bias"]).max() <= bound
    assert float(jnp.std(network["block_0"]["attn"]["b_nd"])) == pytest.approx(0.2, rel=0.3)


def test_environments_of_another_kind_are_refused_with_the_remedy():
    spec = spec_of(SHAPE)
    with pytest.raises(ValueError, match=r"env\.height=16"):
        VPTPolicy(dataclasses.replace(spec, observation={"image": ArraySpec((32, 32, 3), "uint8")}), SHAPE)
    with pytest.raises(ValueError, match=r"env\.action_set=vpt"):
        VPTPolicy(dataclasses.replace(spec, action={"choice": 5}), SHAPE)
    with pytest.raises(ValueError, match="hidsize=10"):
        VPTShape(10, 3)
