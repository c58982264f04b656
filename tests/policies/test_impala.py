"""The IMPALA policy: memory and resets, value normalisation, shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from tests.trainer.fragments import jitted

SPEC = EnvironmentSpec({"image": ArraySpec((20, 28, 3), "uint8")}, {"buttons": 50, "camera": 11})
STEPS = 12


@pytest.fixture(scope="module")
def policy():
    return ImpalaPolicy(SPEC, channels=(4, 8), hidden_size=16)


@pytest.fixture(scope="module")
def params(policy):
    params = jax.jit(policy.init)(jax.random.key(0))
    # Non-trivial statistics, so that a value that is not denormalised cannot pass.
    return policy.update_value_statistics(params, jnp.linspace(-3, 9, 8)[None], jnp.ones((1, 8)))


@pytest.fixture(scope="module")
def sequence():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (2, STEPS, 20, 28, 3)).astype(np.uint8)
    first = np.zeros((2, STEPS), bool)
    first[0, [0, 5, 6]] = True
    first[1, [3, 11]] = True
    memory = rng.normal(size=(2, 16)).astype(np.float32)
    return image, first, memory


def run(policy, params, sequence, cuts):
    """Outputs of the sequence fed in consecutive pieces."""
    image, first, memory = sequence
    apply = jitted(policy)
    pieces = []
    for a, b in zip([0, *cuts], [*cuts, STEPS], strict=True):
        output, memory = apply(params, {"image": image[:, a:b]}, first[:, a:b], memory)
        pieces.append(output)
    logits = {name: np.concatenate([p.logits[name] for p in pieces], axis=1) for name in SPEC.action}
    return logits, np.concatenate([p.value for p in pieces], axis=1), np.asarray(memory)


@pytest.mark.parametrize("cuts", [[i] for i in range(1, STEPS)] + [list(range(1, STEPS)), [4, 8]])
def test_any_cut_of_a_sequence_with_resets_inside_gives_the_same_outputs(policy, params, sequence, cuts):
    """D-09."""
    whole, value, memory = run(policy, params, sequence, [])
    cut, cut_value, cut_memory = run(policy, params, sequence, cuts)
    for name in SPEC.action:
        np.testing.assert_allclose(cut[name], whole[name], atol=1e-5)
    np.testing.assert_allclose(cut_value, value, atol=1e-5)
    np.testing.assert_allclose(cut_memory, memory, atol=1e-5)


def test_what_is_done_in_one_environment_does_not_depend_on_how_many_there_are():
    """Six images of 64x64 and 16 channels are more than a CPU takes at a time."""
    policy = ImpalaPolicy(EnvironmentSpec({"image": ArraySpec((64, 64, 3), "uint8")}, {"buttons": 5}), (16,), 8)
    params = jax.jit(policy.init)(jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 255, (6, 1, 64, 64, 3)).astype(np.uint8)
    memory = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    apply, first = jax.jit(policy.apply), np.zeros((6, 1), bool)
    together, memories = apply(params, {"image": image}, first, memory)
    for i in range(6):
        one = slice(i, i + 1)
        alone, left = apply(params, {"image": image[one]}, first[one], memory[one])
        np.testing.assert_allclose(together.logits["buttons"][one], alone.logits["buttons"], atol=1e-5)
        np.testing.assert_allclose(together.value[one], alone.value, atol=1e-5)
        np.testing.assert_allclose(memories[one], left, atol=1e-5)


def test_nothing_before_a_reset_is_remembered(policy, params, sequence):
    """D-09."""
    image, first, memory = sequence
    other = image.copy()
    other[0, :5] = 255 - other[0, :5]
    one, _ = policy.apply(params, {"image": image}, first, memory)
    two, _ = policy.apply(params, {"image": other}, first, memory + 1)
    np.testing.assert_array_equal(one.logits["buttons"][0, 5:], two.logits["buttons"][0, 5:])
    assert np.abs(one.logits["buttons"][0, 4] - two.logits["buttons"][0, 4]).max() > 1e-5


def test_memory_matters_where_there_is_no_reset(policy, params, sequence):
    image, first, memory = sequence
    one, _ = policy.apply(params, {"image": image}, np.zeros_like(first), memory)
    two, _ = policy.apply(params, {"image": image}, np.zeros_like(first), memory + 1)
    assert np.abs(one.value - two.value).max() > 1e-4


def test_logits_are_normalised_and_nearly_uniform_at_first(policy, params, sequence):
    image, first, memory = sequence
    output, _ = policy.apply(params, {"image": image}, first, memory)
    for name, choices in SPEC.action.items():
        np.testing.assert_allclose(np.exp(output.logits[name]).sum(-1), 1.0, atol=1e-5)
        assert np.abs(output.logits[name] + np.log(choices)).max() < 0.5


def test_updating_value_statistics_leaves_every_value_as_it_was(policy, params, sequence):
    """D-26."""
    image, first, memory = sequence
    before, _ = policy.apply(params, {"image": image}, first, memory)
    moved = policy.update_value_statistics(params, jnp.full((3, 4), 40.0), jnp.ones((3, 4)))
    after, _ = policy.apply(moved, {"image": image}, first, memory)
    assert float(policy.value_scale(moved)) != pytest.approx(float(policy.value_scale(params)))
    np.testing.assert_allclose(after.value, before.value, atol=2e-5)


def test_value_statistics_leave_out_what_is_not_finite_or_masked(policy, params):
    """D-26."""
    target = jnp.array([[1.0, 2.0, jnp.nan, jnp.inf, 1e9]])
    weight = jnp.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    dirty = policy.update_value_statistics(params, target, weight)
    clean = policy.update_value_statistics(params, target[:, :2], weight[:, :2])
    for a, b in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)
    nothing = policy.update_value_statistics(params, target, jnp.zeros_like(weight))
    for a, b in zip(jax.tree.leaves(nothing), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_zeroed_value_head_predicts_0_and_leaves_the_statistics_alone(policy, params, sequence):
    """D-26."""
    image, first, memory = sequence
    zeroed = policy.zero_value_head(params)
    assert all(float(x) != 0.0 for x in params["value_statistics"])
    assert zeroed["value_statistics"] == params["value_statistics"]
    output, _ = policy.apply(zeroed, {"image": image}, first, memory)
    np.testing.assert_allclose(output.value, 0.0, atol=1e-6)
    fresh = policy.zero_value_head(jax.jit(policy.init)(jax.random.key(0)))
    np.testing.assert_array_equal(policy.apply(fresh, {"image": image}, first, memory)[0].value, 0.0)


def test_value_statistics_get_no_gradient(policy, params, sequence):
    image, first, memory = sequence
    of_values = jax.grad(lambda p: policy.apply(p, {"image": image}, first, memory)[0].value.sum())
    gradient = jax.jit(of_values)(params)
    assert all(float(g) == 0.0 for g in gradient["value_statistics"])


def test_an_environment_without_image_is_refused_with_the_remedy():
    spec = EnvironmentSpec({"state": ArraySpec((3,), "float32")}, {"choice": 2})
    with pytest.raises(ValueError, match=r"policy\.factory"):
        ImpalaPolicy(spec)


def test_an_environment_may_rule_out_choices(params, sequence):
    """D-61: the mask is an observation like any other, and the networks heed it."""
    spec = EnvironmentSpec({**SPEC.observation, "action_mask.camera": ArraySpec((11,), "uint8")}, dict(SPEC.action))
    policy = ImpalaPolicy(spec, channels=(4, 8), hidden_size=16)
    image, first, memory = sequence
    mask = np.ones((*first.shape, 11), np.uint8)
    mask[:, ::2, 3:] = 0
    output, _ = policy.apply(params, {"image": image, "action_mask.camera": mask}, first, memory)
    chances = np.exp(output.logits["camera"])
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    assert (chances[mask == 0] == 0).all()
    assert (chances[mask != 0] > 0).all()
