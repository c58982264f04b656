"""One iteration's learning as a whole: what must not matter does not, what must be left alone is."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.trainer.batch import abstract_batch, stack_fragments
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.targets import make_targets
from tests.trainer.fragments import LENGTH, cut, jitted, make_fragments
from tests.trainer.updates import CONFIG, assert_same, distance, update, updated


def outputs(policy, params, fragments):
    batch = stack_fragments(fragments)
    output, _ = jitted(policy)(params, batch.obs, batch.first, batch.policy_state)
    return output


def weighted(fragments, **weights):
    """A batch whose even fragments are of task a, the others of task b."""
    named = [
        dataclasses.replace(f, metadata=dataclasses.replace(f.metadata, task="ab"[n % 2]))
        for n, f in enumerate(fragments)
    ]
    return stack_fragments(named, weights)


def test_only_the_ratio_of_the_tasks_weights_matters(policy, state, fragments):
    equal, _ = update(policy, CONFIG, state, stack_fragments(fragments))
    assert_same(update(policy, CONFIG, state, weighted(fragments, a=7.0, b=7.0))[0].params, equal.params, atol=1e-5)
    one, _ = update(policy, CONFIG, state, weighted(fragments, a=2.0, b=0.5))
    assert_same(update(policy, CONFIG, state, weighted(fragments, a=4.0))[0].params, one.params, atol=1e-5)
    assert distance(one.params, equal.params) > 1e-4


def test_of_a_task_without_weight_nothing_is_learnt(policy, state, fragments):
    """With advantages that are not normalised over both, one task's actions are all the same to the other's loss."""
    config = dataclasses.replace(
        CONFIG, normalize_advantage_full_batch=False, use_normalized_vf=False, batch_size_per_device=8,
        batches_per_iteration=1,
    )  # fmt: skip
    batch = weighted(fragments, b=0.0)
    other = dataclasses.replace(batch, behaviour_logp=batch.behaviour_logp.copy())
    other.behaviour_logp[1::2] -= 3.0
    one, metrics = update(policy, config, state, batch)
    two, other_metrics = update(policy, config, state, other)
    assert_same(one.params, two.params, rtol=0)
    assert metrics["ppo/behaviour_kl"] != other_metrics["ppo/behaviour_kl"]
    other.behaviour_logp[::2] -= 3.0
    assert distance(update(policy, config, state, other)[0].params, one.params) > 1e-4


def test_what_a_task_without_weight_pays_changes_nothing_for_the_others(policy, state, fragments):
    """With the settings that there are by default: advantages and values are normalised by the other task's alone."""
    batch = weighted(fragments, b=0.0)
    batch.continues[:] = False  # one task's rewards do not flow into the other's returns
    only = update(policy, CONFIG, state, batch)[0]
    for reward in (1e3, np.nan):
        other = dataclasses.replace(batch, reward=batch.reward.copy())
        other.reward[1::2] = reward
        found, metrics = update(policy, CONFIG, state, other)
        assert metrics["ppo/skipped_updates"] == 0
        assert_same(found, only, rtol=0)
    # Nor is it any different from a task that is not there, but for the order that fragments are shuffled into.
    alone = dataclasses.replace(CONFIG, batch_size_per_device=4, batches_per_iteration=1)
    half = jax.tree.map(lambda x: x[::2], batch)
    without = update(policy, alone, state, half)[0]
    assert_same(only.params["value_statistics"], without.params["value_statistics"], rtol=1e-5)
    mesh = make_mesh(alone)
    targets = [make_targets(policy, alone, mesh, state.params, rows) for rows in (batch, half)]
    np.testing.assert_allclose(targets[0].advantage[::2], targets[1].advantage, atol=1e-5)
    np.testing.assert_array_equal(targets[0].advantage[1::2], 0.0)


def test_every_metric_is_finite_and_fresh_actions_have_ratio_one(policy, state, fragments):
    """D-11, D-27."""
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments))
    assert {name for name, value in metrics.items() if np.isnan(value)} == {
        f"lag/behaviour_kl_{lag}" for lag in ("1", "2", "3_or_more")
    }
    assert metrics["ppo/first_ratio_error"] < 1e-5
    assert metrics["ppo/skipped_updates"] == 0
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments), version=2)
    assert np.isnan(metrics["ppo/first_ratio_error"])  # nothing is fresh: nothing to say


def test_a_rewarded_action_becomes_more_probable(policy, state):
    config = dataclasses.replace(CONFIG, epochs_per_iteration=4, discount=0.0)
    probability = []
    for iteration in range(5):
        fragments = make_fragments(policy, state.params, 8, seed=iteration, reward=lambda a: 1.0 * (a == 1))
        probability.append(float(jnp.exp(outputs(policy, state.params, fragments).logits["choice"][..., 1]).mean()))
        state, metrics = update(policy, config, state, stack_fragments(fragments))
    assert probability[-1] > probability[0] + 0.2, probability
    assert metrics["loss/entropy"] < np.log(3)


def test_accumulating_batches_is_one_larger_batch(policy, state, fragments):
    batch = stack_fragments(fragments)
    two_of_two = dataclasses.replace(CONFIG, batch_size_per_device=2, batches_per_iteration=4, gradient_accumulation=2)
    four = dataclasses.replace(CONFIG, batch_size_per_device=4, batches_per_iteration=2, gradient_accumulation=1)
    one, metrics = update(policy, two_of_two, state, batch)
    other, other_metrics = update(policy, four, state, batch)
    assert distance(one.params, state.params) > 1e-3
    assert_same(one.params, other.params, atol=1e-5)
    assert metrics == pytest.approx(other_metrics, rel=1e-3, abs=1e-5, nan_ok=True)


def test_batches_weigh_by_their_genuine_steps(policy, state, fragments):
    """Uneven cuts over the batches of one step: the mean is over steps, not over batches' means."""
    uneven = [*(cut(f, 2) for f in fragments[:4]), *fragments[4:]]
    batch = stack_fragments(uneven)
    small = dataclasses.replace(CONFIG, batch_size_per_device=2, batches_per_iteration=4, gradient_accumulation=4)
    large = dataclasses.replace(CONFIG, batch_size_per_device=8, batches_per_iteration=1, gradient_accumulation=1)
    assert_same(update(policy, small, state, batch)[0].params, update(policy, large, state, batch)[0].params, atol=1e-5)


def test_what_lies_in_the_padding_changes_nothing(policy, state, fragments):
    clean = [cut(f, 3 + i % 4) for i, f in enumerate(fragments)]
    dirty = [cut(f, 3 + i % 4, np.random.default_rng(i)) for i, f in enumerate(fragments)]
    one, metrics = update(policy, CONFIG, state, stack_fragments(clean))
    other, other_metrics = update(policy, CONFIG, state, stack_fragments(dirty))
    assert distance(one.params, state.params) > 1e-3
    assert_same(one.params, other.params, atol=1e-5)
    assert metrics == pytest.approx(other_metrics, rel=1e-4, abs=1e-5, nan_ok=True)


def test_gradients_stop_between_contexts_but_memory_does_not(policy, state, fragments):
    """The loss before any step is the same for every context length; the step is not."""
    batch = stack_fragments(fragments)
    results = {}
    for length in (2, 8):
        config = dataclasses.replace(CONFIG, context_length=length, batch_size_per_device=8, batches_per_iteration=1)
        results[length] = update(policy, config, state, batch)
    for name in ("loss/policy", "loss/value", "loss/entropy", "loss/total"):
        assert results[2][1][name] == pytest.approx(results[8][1][name], rel=1e-4, abs=1e-5)
    assert distance(results[2][0].params, results[8][0].params) > 1e-5


def test_the_warm_up_moves_only_the_value_head(policy, state, fragments):
    after, _ = update(policy, CONFIG, state, stack_fragments(fragments), warm_up=np.bool_(True))
    before, new = outputs(policy, state.params, fragments), outputs(policy, after.params, fragments)
    np.testing.assert_array_equal(before.logits["choice"], new.logits["choice"])
    assert np.abs(before.value - new.value).max() > 1e-3
    for name, part in state.params["network"].items():
        if name != "value_head":
            assert_same(part, after.params["network"][name], rtol=0)


def test_an_update_that_is_not_finite_is_skipped_as_a_whole(policy, state, fragments):
    """D-26, D-29."""
    poisoned = make_fragments(policy, state.params, 8)
    poisoned[3].reward[2] = np.nan
    config = dataclasses.replace(CONFIG, epochs_per_iteration=2, batch_size_per_device=8, batches_per_iteration=1)
    after, metrics = update(policy, config, state, stack_fragments(poisoned))
    assert metrics["ppo/skipped_updates"] == 2
    # Of steps that were not taken there is nothing to say.
    assert all(np.isnan(metrics[name]) for name in ("loss/total", "loss/entropy", "ppo/approx_kl", "ppo/grad_norm"))
    assert_same(after.optimizer, state.optimizer, rtol=0)
    before, new = outputs(policy, state.params, fragments), outputs(policy, after.params, fragments)
    np.testing.assert_array_equal(before.logits["choice"], new.logits["choice"])
    # The statistics took in the targets that were finite, without moving any prediction.
    np.testing.assert_allclose(before.value, new.value, atol=1e-5)


@pytest.mark.parametrize("reward", [np.nan, np.inf, 1e25])
def test_only_the_steps_that_hold_what_is_not_finite_are_skipped(policy, state, fragments, reward):
    """D-26, D-29: the others are taken, and the diagnosis names the fragment."""
    poisoned = make_fragments(policy, state.params, 8)
    poisoned[4].reward[3] = reward  # the first of its run: nothing before it depends on it
    config = dataclasses.replace(CONFIG, epochs_per_iteration=3, batch_size_per_device=2, batches_per_iteration=4)
    batch = stack_fragments(poisoned)
    after, metrics, diagnosis = updated(policy, config)(state, batch, coefficients(config, 0, 1))
    assert diagnosis.skipped.shape == (3, 4)
    np.testing.assert_array_equal(diagnosis.skipped, (np.asarray(diagnosis.rows) == 4).any(-1))
    assert metrics["ppo/skipped_updates"] == 3
    assert all(np.isfinite(metrics[name]) for name in ("loss/total", "ppo/approx_kl", "ppo/grad_norm"))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    assert distance(after.params["network"], state.params["network"]) > 1e-3
    # Statistics take in what they took in without the broken steps.
    clean = dataclasses.replace(
        batch, reward=np.where(np.isfinite(batch.reward), batch.reward, 0.0), mask=batch.mask.copy()
    )
    clean.reward[4, 3], clean.mask[4, :4] = 0.0, 0.0
    wanted, _ = update(policy, config, state, clean)
    assert_same(after.params["value_statistics"], wanted.params["value_statistics"], rtol=1e-5)


def test_bfloat16_needs_no_scaler_to_skip_a_step():
    """D-30: the same with VPT in bfloat16; its parameters and gradients are float32, the good step is taken."""
    shape = VPTShape(hidsize=8, heads=1, layers=1, memory=4, channels=(1,), image_size=(8, 8))
    policy = VPTPolicy(spec_of(shape), shape, "bfloat16", use_normalized_vf=False)
    config = dataclasses.replace(CONFIG, batch_size_per_device=1, normalize_advantage_full_batch=False)
    batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_batch(policy, spec_of(shape), 2, LENGTH))
    batch.continues[:] = batch.terminated[:] = batch.truncated[:] = False
    state, outcomes = jax.device_get(initial_state(policy, config, jax.random.key(0))), {}
    for name, broken in (("whole", []), ("half", [1]), ("none", [0, 1])):
        batch.reward[:] = 1.0
        batch.reward[broken] = np.nan
        after, metrics = update(policy, config, state, batch)
        assert metrics["ppo/skipped_updates"] == len(broken)
        assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in jax.tree.leaves(after.params["network"]))
        outcomes[name] = distance(after.params["network"], state.params["network"])
    assert outcomes["whole"] > outcomes["half"] > 1e-3
    assert outcomes["none"] == 0


def test_the_statistics_follow_the_targets(policy, state):
    """D-26."""
    fragments = make_fragments(policy, state.params, 8, reward=lambda a: 0 * a + 10.0)
    after, metrics = update(policy, CONFIG, state, stack_fragments(fragments))
    before_mean, _ = ValueNormalizer().moments(state.params["value_statistics"])
    after_mean, _ = ValueNormalizer().moments(after.params["value_statistics"])
    assert before_mean < after_mean <= metrics["value/target_mean"] + 1e-3


def test_every_update_shuffles_anew_and_a_resumed_one_repeats_the_stream(policy, state, fragments):
    batch = stack_fragments(fragments)
    after, _ = update(policy, CONFIG, state, batch)
    again, _ = update(policy, CONFIG, state, batch)
    assert_same(after, again, rtol=0)
    assert not np.array_equal(after.key, state.key)
    other, _ = update(policy, CONFIG, dataclasses.replace(state, key=after.key), batch)
    assert distance(after.params, other.params) > 1e-6  # other batches


def test_an_entropy_bonus_may_fade(policy, state, fragments):
    batch = stack_fragments(fragments)
    without = dataclasses.replace(CONFIG, entropy_bonus_coef=0.0)
    faded, _ = update(policy, CONFIG, state, batch, entropy_bonus=np.float32(0))
    assert_same(faded.params, update(policy, without, state, batch)[0].params, rtol=0)


def test_the_learning_rate_scales_the_change_and_none_moves_nothing(policy, state, fragments):
    batch = stack_fragments(fragments)
    still, _ = update(policy, CONFIG, state, batch, learning_rate=np.float32(0))
    np.testing.assert_array_equal(
        outputs(policy, still.params, fragments).logits["choice"],
        outputs(policy, state.params, fragments).logits["choice"],
    )


def test_without_a_greatest_norm_gradients_are_left_as_they_are(policy, state, fragments):
    batch = stack_fragments(fragments)
    free, high, low = (
        update(policy, dataclasses.replace(CONFIG, max_grad_norm=most), state, batch)[0] for most in (0.0, 1e6, 1e-3)
    )
    assert_same(free.params, high.params, rtol=0)
    assert distance(free.optimizer, low.optimizer) > 1e-4


def test_the_diagnosis_names_the_fragments_of_a_skipped_step(policy, state):
    """D-36: with targets of their own per fragment, exactly the steps that hold the broken one are skipped."""
    poisoned = make_fragments(policy, state.params, 8)
    batch = stack_fragments(poisoned)
    # Advantages of the whole iteration would be spoilt by one; without normalisation only its run is.
    config = dataclasses.replace(
        CONFIG, batch_size_per_device=2, batches_per_iteration=4, normalize_advantage_full_batch=False
    )
    batch.reward[5, 3] = np.inf
    spoilt = {4, 5} if batch.continues[4] else {5}
    now = coefficients(config, 0, 1)
    after, metrics, diagnosis = jax.device_get(updated(policy, config)(state, batch, now))
    assert sorted(diagnosis.rows.ravel().tolist()) == list(range(8))
    for skipped, rows in zip(diagnosis.skipped[0], diagnosis.rows[0], strict=True):
        assert skipped == bool(spoilt & set(rows.tolist()))
    assert metrics["ppo/skipped_updates"] == diagnosis.skipped.sum() >= 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


HELD = dataclasses.replace(CONFIG, kl_reference_coef=1.0, epochs_per_iteration=1)


@pytest.fixture(scope="module")
def held(policy, state):
    """A state with the policy itself as its reference."""
    return dataclasses.replace(state, reference=state.params)


@pytest.mark.parametrize("burn_in", [0, 3])
def test_a_policy_does_not_diverge_from_itself_memory_included(policy, held, fragments, burn_in):
    """D-20: with one optimiser step nothing has moved yet; fragments and contexts begin with memory of what was before."""
    one_step = dataclasses.replace(HELD, batches_per_iteration=1, batch_size_per_device=8, burn_in=burn_in)
    batch = stack_fragments(fragments)
    memory = np.random.default_rng(0).normal(size=batch.policy_state.shape).astype(np.float32)
    batch = dataclasses.replace(batch, policy_state=memory)
    _, metrics = update(policy, one_step, held, batch, kl_reference=np.float32(1.0))
    assert abs(metrics["loss/kl_reference"]) < 1e-6


def test_a_policy_is_held_near_its_reference(policy, held, fragments):
    """The stronger it is held, the less it diverges; the reference itself stays."""
    batch = stack_fragments(fragments)
    divergence = []
    for coefficient in (0.0, 1.0, 30.0):
        state = held
        for _ in range(4):
            state, metrics = update(policy, HELD, state, batch, kl_reference=np.float32(coefficient))
        assert_same(state.reference, held.params, rtol=0)
        divergence.append(metrics["loss/kl_reference"])
    assert divergence[0] > 1.2 * divergence[1] > 1.2 * 1.2 * divergence[2] > 0


def test_the_divergence_has_two_directions(policy, held, fragments):
    """D-21: both are 0 for equals, positive and different otherwise, and equal to the closed form."""
    one_step = dataclasses.replace(HELD, batches_per_iteration=1, batch_size_per_device=8, context_length=8)
    batch = stack_fragments(fragments)
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), held.reference["network"])
    state = dataclasses.replace(held, reference={**held.reference, "network": moved})
    here, there = (
        np.asarray(outputs(policy, params, fragments).logits["choice"][:, :-1], np.float64)
        for params in (state.params, state.reference)
    )
    for direction, p, q in (("reverse", here, there), ("forward", there, here)):
        config = dataclasses.replace(one_step, kl_reference_direction=direction)
        _, metrics = update(policy, config, state, batch, kl_reference=np.float32(1))
        assert metrics["loss/kl_reference"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)


def test_a_state_without_reference_has_no_divergence_to_tell(policy, state, fragments):
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments))
    assert "loss/kl_reference" not in metrics
    own = jax.jit(lambda: initial_state(policy, HELD, jax.random.key(0)))()
    assert_same(own.reference, own.params, rtol=0)


_ON_FOUR_DEVICES = """
import dataclasses, json
import jax, numpy as np
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from tests.trainer.fragments import make_fragments, tiny_policy
from tests.trainer.updates import CONFIG
mesh = sharding.make_mesh(CONFIG)
policy = tiny_policy()
state = jax.device_put(initial_state(policy, CONFIG, jax.random.key(0)), sharding.replicated(mesh))
batch = stack_fragments(make_fragments(policy, jax.device_get(state.params), 8))
batch.reward[4, 3] = np.nan  # the first of its run: nothing before it depends on it
config = dataclasses.replace(CONFIG, batch_size_per_device=4 // mesh.size, batches_per_iteration=2)
update = jax.jit(make_update(policy, config, mesh))
for _ in range(3):
    state, metrics, _ = update(state, jax.device_put(batch, sharding.along_batch(mesh)), coefficients(config, 0, 1))
for x in jax.tree.leaves(state):
    copies = [np.asarray(shard.data) for shard in x.addressable_shards]
    assert all(np.array_equal(copy, copies[0]) for copy in copies), "devices differ"
finite = all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))
print(json.dumps([mesh.size, finite, float(metrics["ppo/skipped_updates"])]))
"""


def test_a_gradient_that_is_not_finite_leaves_four_devices_bit_equal():
    """D-29, D-30: one fragment on one device is broken; every device skips that step and takes the others."""
    env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", _ON_FOUR_DEVICES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    devices, finite, skipped = json.loads(done.stdout.splitlines()[-1])
    assert devices == 4
    assert finite
    assert skipped == 1  # of the two steps of the last iteration
