"""Fragments hold exactly the steps that happened, wherever they are cut."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.rollout.fragment_builder import Decision, FragmentBuilder
from tests.in_process_pool import SPEC, signed_image

LENGTH = 4


def describe(fragment_index, start_step, valid_steps, version_first, version_last):
    return FragmentMetadata(0, 0, 0, fragment_index, start_step, valid_steps, "s", version_first, version_last, "task")


def decision(step, version=1):
    return Decision({"choice": np.array([step % 4], np.int32)}, -float(step), 10.0 + step, version)


@pytest.fixture
def builder():
    return FragmentBuilder(SPEC, LENGTH, describe)


def feed(builder, steps, start=0, version=1, truncated_at=(), terminated_at=()):
    """Observes and completes the given number of steps; returns the fragments that came out."""
    out, first = [], start == 0
    for step in range(start, start + steps):
        builder.observe({"image": signed_image(0, 0, step)}, first)
        out.append(builder.decide(decision(step, version), np.float32(step)))
        ended, cut = step in terminated_at, step in truncated_at
        builder.outcome(float(step), ended, cut, 5.0 if cut else 0.0)
        first = ended or cut
    return [f for f in out if f is not None]


def test_a_fragment_is_complete_with_the_observation_after_its_last_action(builder):
    assert feed(builder, LENGTH) == []
    (fragment,) = feed(builder, 1, start=LENGTH)
    np.testing.assert_array_equal(fragment.reward, np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(fragment.behaviour_value, 10.0 + np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(fragment.behaviour_logp, -np.arange(4, dtype=np.float32))
    for step in range(5):
        np.testing.assert_array_equal(fragment.obs["image"][step], signed_image(0, 0, step))
    assert fragment.first.tolist() == [True, False, False, False, False]
    assert fragment.policy_state == 0.0


def test_consecutive_fragments_continue_each_other_and_the_second_has_its_own_memory(builder):
    one, two = feed(builder, 2 * LENGTH + 1)
    assert one.metadata.continued_by(two.metadata, LENGTH)
    assert not two.metadata.continued_by(one.metadata, LENGTH)
    assert two.policy_state == float(LENGTH)
    np.testing.assert_array_equal(one.obs["image"][LENGTH], two.obs["image"][0])


def test_a_failure_cuts_the_fragment_before_the_step_that_never_was(builder):
    """D-13."""
    feed(builder, 2)
    builder.observe({"image": signed_image(0, 0, 2)}, False)
    assert builder.decide(decision(2, version=9)) is None
    fragment = builder.cut()
    assert (fragment.metadata.valid_steps, fragment.metadata.version_last) == (2, 1), "the lost decision is none of it"
    assert fragment.version.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(fragment.reward, [0, 1, 0, 0])
    np.testing.assert_array_equal(fragment.obs["image"][2], signed_image(0, 0, 2))
    assert fragment.behaviour_value[2] == 12.0
    assert not fragment.obs["image"][3:].any()
    assert not fragment.action["choice"][2:].any()
    assert not fragment.terminated.any()
    assert not fragment.truncated.any()
    (following,) = feed(builder, LENGTH + 1)
    assert not fragment.metadata.continued_by(following.metadata, LENGTH)
    assert following.metadata.start_step == 3


def test_a_failure_in_the_first_step_of_a_fragment_leaves_nothing(builder):
    builder.observe({"image": signed_image(0, 0, 0)}, True)
    assert builder.decide(decision(0)) is None
    assert builder.cut() is None
    builder.observe({"image": signed_image(0, 1, 0)}, True)
    assert builder.opens


def test_every_step_carries_its_version(builder):
    """D-16, D-18."""
    feed(builder, 1, version=3)
    feed(builder, 1, start=1, version=4)
    feed(builder, 2, start=2, version=6)
    (fragment,) = feed(builder, 1, start=4, version=9)
    assert fragment.version.tolist() == [3, 4, 6, 6]
    assert (fragment.metadata.version_first, fragment.metadata.version_last) == (3, 6)


def test_ends_of_both_kinds_stay_apart(builder):
    """D-12."""
    feed(builder, LENGTH, truncated_at=(1,), terminated_at=(2,))
    (fragment,) = feed(builder, 1, start=LENGTH)
    assert fragment.truncated.tolist() == [False, True, False, False]
    assert fragment.terminated.tolist() == [False, False, True, False]
    assert fragment.truncation_value.tolist() == [0.0, 5.0, 0.0, 0.0]
    assert fragment.first.tolist() == [True, False, True, True, False]


def test_out_of_order_calls_are_refused(builder):
    with pytest.raises(RuntimeError, match="without an action"):
        builder.outcome(0.0, False, False, 0.0)
    with pytest.raises(RuntimeError, match="without an observation"):
        builder.decide(decision(0))
    builder.observe({"image": signed_image(0, 0, 0)}, True)
    with pytest.raises(RuntimeError, match="before the outcome"):
        builder.observe({"image": signed_image(0, 0, 1)}, False)
    builder.decide(decision(0))
    with pytest.raises(RuntimeError, match="before the outcome"):
        builder.observe({"image": signed_image(0, 0, 1)}, False)
