"""What must hold of VPT's memory, gradients and weights whatever its numbers are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.env import ArraySpec
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape

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


def test_the_form_for_cpus_never_computes_in_bfloat16(small):
    """And its memory is the same: one may go on where the other stopped."""
    *_, image, first = small
    shape = dataclasses.replace(SHAPE, channels=(16, 16))
    exact, coarse = (VPTPolicy(spec_of(shape), shape, dtype) for dtype in ("float32", "bfloat16"))
    acting, prepare = coarse.for_cpu()
    params = exact.init(jax.random.key(0))
    prepared = prepare(params)
    assert prepared["network"]["encoder"]["stack_1"]["firstconv"]["kernel"].shape == (36, 16, 16)
    wanted = jax.jit(exact.apply)(params, {"image": image}, first, exact.initial_state(len(first)))
    found = jax.jit(acting.apply)(prepared, {"image": image}, first, coarse.initial_state(len(first)))
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


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
