"""One iteration's learning as a whole: what must not matter does not, what must be left alone is."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from tests.trainer.fragments import cut, make_fragments, tiny_policy

CONFIG = TrainerConfig(
    batch_size_per_device=4, batches_per_iteration=2, context_length=4, learning_rate=1e-2, entropy_bonus_coef=0.01,
    weight_decay=0.1, max_grad_norm=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def state(policy):
    """After one iteration: statistics and optimiser are no longer empty."""
    fresh = initial_state(policy, CONFIG, 0)
    batch = stack_fragments(make_fragments(policy, fresh.params, 8, seed=9), 1)
    return jax.device_get(updated(policy, CONFIG)(fresh, batch, np.bool_(False))[0])


@pytest.fixture(scope="module")
def fragments(policy, state):
    return make_fragments(policy, state.params, 8)


@functools.cache
def updated(policy, config, num_devices=1):
    return jax.jit(make_update(policy, config, num_devices))


def update(policy, config, state, batch, warm_up=False, kl_coef=0.0):
    state, metrics = updated(policy, config)(state, batch, np.bool_(warm_up), np.float32(kl_coef))
    return jax.device_get(state), {name: float(x) for name, x in metrics.items()}


def assert_same(one, other, **tolerance):
    for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, c, **tolerance)


def distance(one, other):
    return max(np.abs(a - c).max() for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def outputs(policy, params, fragments):
    batch = stack_fragments(fragments, 1)
    output, _ = policy.apply(params, batch.obs, batch.first, batch.policy_state)
    return output


def test_every_metric_is_finite_and_fresh_actions_have_ratio_one(policy, state, fragments):
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments, 1))
    assert all(map(np.isfinite, metrics.values())), metrics
    assert metrics["ppo/first_ratio_error"] < 1e-5
    assert metrics["ppo/skipped_updates"] == 0
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments, 2))
    assert np.isnan(metrics["ppo/first_ratio_error"])  # nothing is fresh: nothing to say


def test_a_rewarded_action_becomes_more_probable(policy, state):
    config = dataclasses.replace(CONFIG, epochs_per_iteration=4, discount=0.0)
    probability = []
    for iteration in range(5):
        fragments = make_fragments(policy, state.params, 8, seed=iteration, reward=lambda a: 1.0 * (a == 1))
        probability.append(float(jnp.exp(outputs(policy, state.params, fragments).logits["choice"][..., 1]).mean()))
        state, metrics = update(policy, config, state, stack_fragments(fragments, 1))
    assert probability[-1] > probability[0] + 0.2, probability
    assert metrics["loss/entropy"] < np.log(3)


def test_accumulating_batches_is_one_larger_batch(policy, state, fragments):
    batch = stack_fragments(fragments, 1)
    two_of_two = dataclasses.replace(CONFIG, batch_size_per_device=2, batches_per_iteration=4, gradient_accumulation=2)
    four = dataclasses.replace(CONFIG, batch_size_per_device=4, batches_per_iteration=2, gradient_accumulation=1)
    one, metrics = update(policy, two_of_two, state, batch)
    other, other_metrics = update(policy, four, state, batch)
    assert distance(one.params, state.params) > 1e-3
    assert_same(one.params, other.params, atol=1e-5)
    for name in metrics:
        assert metrics[name] == pytest.approx(other_metrics[name], rel=1e-3, abs=1e-5), name


def test_batches_weigh_by_their_genuine_steps(policy, state, fragments):
    """Uneven cuts over the batches of one step: the mean is over steps, not over batches' means."""
    uneven = [*(cut(f, 2) for f in fragments[:4]), *fragments[4:]]
    batch = stack_fragments(uneven, 1)
    small = dataclasses.replace(CONFIG, batch_size_per_device=2, batches_per_iteration=4, gradient_accumulation=4)
    large = dataclasses.replace(CONFIG, batch_size_per_device=8, batches_per_iteration=1, gradient_accumulation=1)
    assert_same(update(policy, small, state, batch)[0].params, update(policy, large, state, batch)[0].params, atol=1e-5)


def test_what_lies_in_the_padding_changes_nothing(policy, state, fragments):
    clean = [cut(f, 3 + i % 4) for i, f in enumerate(fragments)]
    dirty = [cut(f, 3 + i % 4, np.random.default_rng(i)) for i, f in enumerate(fragments)]
    one, metrics = update(policy, CONFIG, state, stack_fragments(clean, 1))
    other, other_metrics = update(policy, CONFIG, state, stack_fragments(dirty, 1))
    assert distance(one.params, state.params) > 1e-3
    assert_same(one.params, other.params, atol=1e-6)
    assert metrics == pytest.approx(other_metrics, rel=1e-4, abs=1e-6)


def test_gradients_stop_between_contexts_but_memory_does_not(policy, state, fragments):
    """The loss before any step is the same for every context length; the step is not."""
    batch = stack_fragments(fragments, 1)
    results = {}
    for length in (2, 8):
        config = dataclasses.replace(CONFIG, context_length=length, batch_size_per_device=8, batches_per_iteration=1)
        results[length] = update(policy, config, state, batch)
    for name in ("loss/policy", "loss/value", "loss/entropy", "loss/total"):
        assert results[2][1][name] == pytest.approx(results[8][1][name], rel=1e-4, abs=1e-6)
    assert distance(results[2][0].params, results[8][0].params) > 1e-5


def test_the_warm_up_moves_only_the_value_head(policy, state, fragments):
    after, _ = update(policy, CONFIG, state, stack_fragments(fragments, 1), warm_up=True)
    before, new = outputs(policy, state.params, fragments), outputs(policy, after.params, fragments)
    np.testing.assert_array_equal(before.logits["choice"], new.logits["choice"])
    assert np.abs(before.value - new.value).max() > 1e-3
    for name, part in state.params["network"].items():
        if name != "value_head":
            assert_same(part, after.params["network"][name], rtol=0)


def test_an_update_that_is_not_finite_is_skipped_as_a_whole(policy, state, fragments):
    poisoned = make_fragments(policy, state.params, 8)
    poisoned[3].reward[2] = np.nan
    config = dataclasses.replace(CONFIG, epochs_per_iteration=2)
    after, metrics = update(policy, config, state, stack_fragments(poisoned, 1))
    assert metrics["ppo/skipped_updates"] == 4
    assert_same(after.optimizer, state.optimizer, rtol=0)
    before, new = outputs(policy, state.params, fragments), outputs(policy, after.params, fragments)
    np.testing.assert_array_equal(before.logits["choice"], new.logits["choice"])
    # The statistics took in the targets that were finite, without moving any prediction.
    np.testing.assert_allclose(before.value, new.value, atol=1e-5)


def test_the_statistics_follow_the_targets(policy, state):
    fragments = make_fragments(policy, state.params, 8, reward=lambda a: 0 * a + 10.0)
    after, metrics = update(policy, CONFIG, state, stack_fragments(fragments, 1))
    before_mean, _ = ValueNormalizer().moments(state.params["value_statistics"])
    after_mean, _ = ValueNormalizer().moments(after.params["value_statistics"])
    assert before_mean < after_mean <= metrics["value/target_mean"] + 1e-3


def test_every_update_shuffles_anew_and_a_resumed_one_repeats_the_stream(policy, state, fragments):
    batch = stack_fragments(fragments, 1)
    after, _ = update(policy, CONFIG, state, batch)
    again, _ = update(policy, CONFIG, state, batch)
    assert_same(after, again, rtol=0)
    assert not np.array_equal(after.key, state.key)
    other, _ = update(policy, CONFIG, dataclasses.replace(state, key=after.key), batch)
    assert distance(after.params, other.params) > 1e-6  # other batches


HELD = dataclasses.replace(CONFIG, kl_reference_coef=1.0, epochs_per_iteration=1)


@pytest.fixture(scope="module")
def held(policy, state):
    """A state with the policy itself as its reference."""
    return dataclasses.replace(state, reference=state.params)


def test_a_policy_does_not_diverge_from_itself_memory_included(policy, held, fragments):
    """D-20: with one optimiser step nothing has moved yet; fragments and contexts begin with memory of what was before."""
    one_step = dataclasses.replace(HELD, batches_per_iteration=1, batch_size_per_device=8)
    batch = stack_fragments(fragments, 1)
    memory = np.random.default_rng(0).normal(size=batch.policy_state.shape).astype(np.float32)
    batch = dataclasses.replace(batch, policy_state=memory)
    _, metrics = update(policy, one_step, held, batch, kl_coef=1.0)
    assert abs(metrics["loss/kl_reference"]) < 1e-6


def test_a_policy_is_held_near_its_reference(policy, held, fragments):
    """The stronger it is held, the less it diverges; the reference itself stays."""
    batch = stack_fragments(fragments, 1)
    divergence = []
    for coefficient in (0.0, 1.0, 30.0):
        state = held
        for _ in range(4):
            state, metrics = update(policy, HELD, state, batch, kl_coef=coefficient)
        assert_same(state.reference, held.params, rtol=0)
        divergence.append(metrics["loss/kl_reference"])
    assert divergence[0] > 1.2 * divergence[1] > 1.2 * 1.2 * divergence[2] > 0


def test_a_state_without_reference_has_no_divergence_to_tell(policy, state, fragments):
    _, metrics = update(policy, CONFIG, state, stack_fragments(fragments, 1))
    assert "loss/kl_reference" not in metrics
    own = jax.jit(functools.partial(initial_state, policy, HELD, 0))()
    assert_same(own.reference, own.params, rtol=0)


_ON_DEVICES = """
import json, sys
import jax, numpy as np
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.state import initial_state
from tests.trainer.fragments import make_fragments, tiny_policy
from tests.trainer.test_update import CONFIG
import dataclasses
from minestudio_jax.trainer.update import make_update
mesh = sharding.data_mesh()
config = dataclasses.replace(CONFIG, batch_size_per_device=8 // mesh.size, batches_per_iteration=1)
policy = tiny_policy()
state = jax.device_put(initial_state(policy, config, 0), sharding.replicated(mesh))
batch = stack_fragments(make_fragments(policy, jax.device_get(state.params), 8), 1)
update = jax.jit(make_update(policy, config, mesh.size))
for _ in range(3):
    state, metrics = update(state, jax.device_put(batch, sharding.along_data(mesh)), np.bool_(False))
leaves = [np.asarray(x).astype(float).ravel() for x in jax.tree.leaves(state.params)]
print(json.dumps([mesh.size, np.concatenate(leaves).tolist(), {k: float(v) for k, v in metrics.items()}]))
"""


def test_four_devices_learn_what_one_learns():
    """The same eight fragments in one step, on one device and spread over four: the same parameters."""

    def run(devices):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        done = subprocess.run(
            [sys.executable, "-c", _ON_DEVICES], env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    (one, params, metrics), (four, spread, spread_metrics) = run(1), run(4)
    assert (one, four) == (1, 4)
    np.testing.assert_allclose(params, spread, atol=1e-5)
    assert metrics == pytest.approx(spread_metrics, rel=1e-3, abs=1e-4)
