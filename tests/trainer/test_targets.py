"""The pass before the first step: what is learnt towards, and what is said of the data."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies import heads
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.targets import make_targets, without_burn_in
from tests.trainer.fragments import LENGTH, cut, jitted, make_fragments
from tests.trainer.updates import CONFIG, assert_same, distance, update


def test_a_fragments_targets_do_not_depend_on_its_company(policy, state, fragments):
    """D-10: values, advantages and targets one fragment at a time, all at once, and of one environment alone."""

    def targets(fragments, at_a_time):
        config = dataclasses.replace(CONFIG, batch_size_per_device=at_a_time)
        return jax.jit(partial(make_targets, policy, config, make_mesh(config)))(
            state.params, stack_fragments(fragments)
        )

    whole = targets(fragments, 8)
    for found, rows in ((targets(fragments, 1), slice(None)), (targets(fragments[2:4], 2), slice(2, 4))):
        for name in ("raw_advantage", "value_target", "old_value", "start_logp"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name)[rows], atol=1e-5)


def test_the_mean_run_is_what_counting_says(policy, state, fragments):
    """D-28, D-44: six of eight fragments, one cut short: runs of 16, 8, 8 and 8 + 3 steps."""
    some = [*fragments[:3], fragments[5], fragments[6], cut(fragments[7], 3)]
    config = dataclasses.replace(CONFIG, batch_size_per_device=3)
    _, metrics = update(policy, config, state, stack_fragments(some))
    assert metrics["replay/run_length_mean"] == pytest.approx((16 + 8 + 8 + 11) / 4)


def older(state):
    """Parameters of a version before."""
    network = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), state.params["network"])
    return {**state.params, "network": network}


def lagging(policy, state, seed=3):
    """Fragments of another policy than the one in training: an older version."""
    return make_fragments(policy, older(state), 8, seed=seed, version=1)


def test_lag_is_told_on_ratios_as_they_are(policy, state):
    """D-11: the divergence of the policy that acted, by versions of lag; nothing where there is none."""
    _, metrics = update(policy, CONFIG, state, stack_fragments(lagging(policy, state)), version=3)
    assert metrics["lag/behaviour_kl_2"] == pytest.approx(metrics["ppo/behaviour_kl"], rel=1e-4)
    assert metrics["ppo/behaviour_kl"] > 1e-4
    assert metrics["ppo/behaviour_log_ratio_max"] > 0.02
    for lag in ("0", "1", "3_or_more"):
        assert np.isnan(metrics[f"lag/behaviour_kl_{lag}"])


def test_lag_is_told_of_every_step(policy, state):
    """D-16, D-18: a fragment in which the policy changed is of several versions, and padding of none."""
    fragments = lagging(policy, state)
    versions = np.array([1, 1, 1, 1, 3, 3, 3, 3], np.int32)
    mixed = [cut(dataclasses.replace(f, version=versions), 6) for f in fragments[:2]]
    _, metrics = update(policy, CONFIG, state, stack_fragments([*mixed, *fragments[2:]]), version=3)
    assert (metrics["lag/policy_versions_min"], metrics["lag/policy_versions_max"]) == (0.0, 2.0)
    assert metrics["lag/policy_versions_mean"] == pytest.approx(2 * (1 - 4 / (2 * 6 + 6 * 8)))
    assert metrics["lag/mixed_fragments"] == pytest.approx(2 / 8)
    assert metrics["lag/behaviour_kl_0"] > 0
    assert np.isnan(metrics["lag/behaviour_kl_1"])
    by_lag = (4 * metrics["lag/behaviour_kl_0"] + 56 * metrics["lag/behaviour_kl_2"]) / 60
    assert by_lag == pytest.approx(metrics["ppo/behaviour_kl"], rel=1e-4)


def test_memory_of_the_policy_before_is_no_disagreement(policy, state):
    """D-18, D-27: the ratio of an action is 1 only if the memory it came of was written by the same parameters."""
    apply, half = jitted(policy), LENGTH // 2
    mixed, by_newer_alone = [], make_fragments(policy, state.params, 8, version=3, end_rate=0.0)
    for fragment in by_newer_alone:
        image, first = fragment.obs["image"][None], fragment.first[None]
        _, memory = apply(older(state), {"image": image[:, :half]}, first[:, :half], policy.initial_state(1))
        output, _ = apply(state.params, {"image": image[:, half:]}, first[:, half:], memory)
        logits = {name: head[:, :-1] for name, head in output.logits.items()}
        later = heads.log_prob(logits, {name: x[None, half:] for name, x in fragment.action.items()})[0]
        logp = np.concatenate([fragment.behaviour_logp[:half], later])
        version = np.repeat(np.array([1, 3], np.int32), half)
        mixed.append(dataclasses.replace(fragment, behaviour_logp=logp, version=version))
    _, metrics = update(policy, CONFIG, state, stack_fragments(mixed), version=3)
    assert metrics["lag/behaviour_kl_0"] > 1e-7  # the newest policy's, and yet not rounding, which makes some 1e-11
    assert np.isnan(metrics["ppo/first_ratio_error"])
    _, metrics = update(policy, CONFIG, state, stack_fragments([*mixed[:4], *by_newer_alone[4:]]), version=3)
    assert metrics["ppo/first_ratio_error"] < 1e-5


def test_nothing_is_learnt_while_memory_is_brought_up_to_date(policy, state):
    """D-18: of the steps of burn-in only what they show counts, unless an episode began in the fragment before them."""
    burning = dataclasses.replace(CONFIG, burn_in=4)
    fragments = make_fragments(policy, state.params, 8, end_rate=0.0)
    batch = stack_fragments(fragments)
    np.testing.assert_array_equal(batch.first[:, 0], np.arange(8) % 2 == 0)
    batch.first[3, 2] = True
    before = update(policy, burning, state, batch)[0]

    def changed(what, rows, steps):
        other = dataclasses.replace(batch, behaviour_logp=batch.behaviour_logp.copy(), obs=dict(batch.obs))
        if what == "logp":
            other.behaviour_logp[rows, steps] += 0.1
        else:
            other.obs["image"] = batch.obs["image"].copy()
            other.obs["image"][rows, steps] = 255
        return update(policy, burning, state, other)[0].params

    assert_same(changed("logp", [1, 1, 3, 7], [0, 3, 1, 2]), before.params, rtol=0)
    for row, step in ((0, 0), (1, 4), (3, 2)):
        assert distance(changed("logp", [row], [step]), before.params) > 1e-6, (row, step)
    assert distance(changed("image", [1], [0]), before.params) > 1e-6


def test_burn_in_is_of_the_loss_and_of_what_it_is_normalised_by(policy, state, fragments):
    """As if the steps had no weight; returns and run lengths go through them."""
    burning = dataclasses.replace(CONFIG, burn_in=4)
    batch = stack_fragments(fragments)
    mesh = make_mesh(CONFIG)
    without, with_it = (make_targets(policy, c, mesh, state.params, batch) for c in (CONFIG, burning))
    np.testing.assert_array_equal(without.value_target, with_it.value_target)
    np.testing.assert_array_equal(without.raw_advantage, with_it.raw_advantage)
    learnt = without_burn_in(batch, 4).mask > 0
    assert 0.5 < learnt.mean() < 1
    advantage = np.asarray(with_it.advantage)
    assert advantage[learnt].mean() == pytest.approx(0.0, abs=1e-5)
    assert advantage[learnt].std() == pytest.approx(1.0, rel=1e-4)
    assert not advantage[~learnt].any()
    _, metrics = update(policy, burning, state, batch)
    _, plain = update(policy, CONFIG, state, batch)
    for name in ("replay/run_length_mean", "value/target_mean", "ppo/behaviour_kl", "lag/policy_versions_mean"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-9)


def test_what_ratios_are_taken_against(policy, state):
    """D-11: of lagging data the first ratio is 1 only when recomputed, and the correction tells the two apart."""
    one_step = dataclasses.replace(CONFIG, batches_per_iteration=1, batch_size_per_device=8)
    batch = stack_fragments(lagging(policy, state))
    found = {}
    for kind in ("behaviour", "recompute", "vtrace"):
        config = dataclasses.replace(one_step, off_policy=kind)
        found[kind] = update(policy, config, state, batch, version=2)
    for kind in ("recompute", "vtrace"):
        assert abs(found[kind][1]["ppo/approx_kl"]) < 1e-8
    assert found["behaviour"][1]["ppo/approx_kl"] > 1e-4
    kinds = list(found)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert distance(found[kinds[one]][0].params, found[kinds[other]][0].params) > 1e-5


def test_all_corrections_agree_on_data_of_the_policy_in_training(policy, state, fragments):
    batch = stack_fragments(fragments)
    results = [
        update(policy, dataclasses.replace(CONFIG, off_policy=kind), state, batch)[0].params
        for kind in ("behaviour", "recompute", "vtrace")
    ]
    assert_same(results[0], results[1], atol=1e-4)
    assert_same(results[0], results[2], atol=1e-4)


def test_advantages_may_be_computed_anew_for_every_epoch(policy, state, fragments):
    """The first epoch is the same; later ones see the moved value function."""
    batch = stack_fragments(fragments)
    for epochs, same in ((1, True), (3, False)):
        results = [
            update(
                policy, dataclasses.replace(CONFIG, epochs_per_iteration=epochs, advantage_refresh=when), state, batch
            )
            for when in ("iteration", "epoch")
        ]
        apart = distance(results[0][0].params, results[1][0].params)
        assert apart < 1e-7 if same else apart > 1e-5
        assert_same(results[0][0].params["value_statistics"], results[1][0].params["value_statistics"], rtol=0)


def test_ratios_are_to_the_start_of_the_iteration_but_with_vtrace_anew_for_every_epoch(policy, state, fragments):
    """One step an epoch: the first epoch's ratios are 1, those of the second are if they are to its own start."""
    batch = stack_fragments(fragments)
    one_step = dataclasses.replace(CONFIG, gradient_accumulation=2, epochs_per_iteration=2, advantage_refresh="epoch")
    for kind, anew in (("recompute", False), ("vtrace", True)):
        _, metrics = update(policy, dataclasses.replace(one_step, off_policy=kind), state, batch)
        assert (metrics["ppo/approx_kl"] < 1e-7) == anew
