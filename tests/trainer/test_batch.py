from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from minestudio_jax.trainer.advantages import joined_generalized_advantage_estimation
from minestudio_jax.trainer.batch import abstract_batch, in_runs, stack_fragments
from tests.trainer.fragments import LENGTH, SPEC, cut, make_fragments, tiny_policy


@pytest.fixture(scope="module")
def fragments():
    policy = tiny_policy()
    return make_fragments(policy, policy.init(jax.random.key(0)), 6)


def test_consecutive_fragments_lie_next_to_each_other_whatever_order_they_came_in(fragments):
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 1, 4, 0, 3]):
        batch = stack_fragments(in_runs(fragments[i] for i in order))
        assert batch.continues.tolist() == [True, False, True, False, True, False]
        np.testing.assert_array_equal(batch.obs["image"], np.stack([f.obs["image"] for f in fragments]))
        np.testing.assert_array_equal(batch.reward, np.stack([f.reward for f in fragments]))


def test_fragments_are_not_joined_across_a_gap_a_failure_a_session_or_a_life(fragments):
    """D-15."""
    first, second = fragments[:2]

    def continues(first, second):
        return stack_fragments([first, second]).continues.any()

    def with_metadata(**change):
        return dataclasses.replace(second, metadata=dataclasses.replace(second.metadata, **change))

    assert continues(first, second)
    assert not continues(first, with_metadata(start_step=LENGTH + 1))
    assert not continues(first, with_metadata(session_id="other"))
    assert not continues(first, with_metadata(worker_life=1))
    assert not continues(first, with_metadata(env_id=1))
    assert not continues(cut(first, 5), second)


def test_a_cut_fragment_bootstraps_from_its_last_genuine_observation_and_sees_nothing_behind(fragments):
    """D-13."""
    fragment = dataclasses.replace(fragments[0], terminated=np.zeros(LENGTH, bool), truncated=np.zeros(LENGTH, bool))
    for rng in (None, np.random.default_rng(0)):
        batch = stack_fragments([cut(fragment, 5, rng)])
        assert batch.mask.tolist() == [[1] * 5 + [0] * 3]
        assert batch.truncated[0, 4]
        assert batch.truncation_value[0, 4] == fragment.behaviour_value[5]
        advantage, _ = joined_generalized_advantage_estimation(
            batch.reward, batch.behaviour_value, batch.terminated, batch.truncated, batch.truncation_value,
            batch.continues, 0.9, 0.8,
        )  # fmt: skip
        delta = fragment.reward[:5] + 0.9 * fragment.behaviour_value[1:6] - fragment.behaviour_value[:5]
        expected = [sum(0.72 ** (k - t) * delta[k] for k in range(t, 5)) for t in range(5)]
        np.testing.assert_allclose(advantage[0, :5], expected, rtol=1e-5)


def test_a_batch_says_of_every_step_which_version_acted(fragments):
    """D-16, D-18."""
    versions = np.array([1, 1, 2, 2, 2, 3, 3, 5], np.int32)
    mixed = dataclasses.replace(fragments[0], version=versions)
    assert stack_fragments([mixed, *fragments[1:]]).version.tolist() == [versions.tolist(), *[[1] * LENGTH] * 5]


def test_the_abstract_batch_is_what_a_real_one_is(fragments):
    real = stack_fragments(fragments)
    abstract = abstract_batch(tiny_policy(), SPEC, 6, LENGTH)
    assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), real) == jax.tree.map(
        lambda x: (x.shape, np.dtype(x.dtype)), abstract
    )
