"""Generalised advantage estimation: golden numbers, a float64 loop, and properties."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.trainer.advantages import (
    generalized_advantage_estimation,
    joined_generalized_advantage_estimation,
    joined_vtrace,
    normalized,
)


def loop_gae(reward, value, terminated, truncated, truncation_value, discount, gae_lambda):
    """The definition, one trace at a time, in float64."""
    reward, value, truncation_value = (np.asarray(x, np.float64) for x in (reward, value, truncation_value))
    advantage = np.zeros_like(reward)
    for n in range(reward.shape[0]):
        carry = 0.0
        for t in reversed(range(reward.shape[1])):
            if terminated[n, t]:
                following, carry = 0.0, 0.0
            elif truncated[n, t]:
                following, carry = truncation_value[n, t], 0.0
            else:
                following = value[n, t + 1]
            delta = reward[n, t] + discount * following - value[n, t]
            carry = delta + discount * gae_lambda * carry
            advantage[n, t] = carry
    return advantage, advantage + value[:, :-1]


def random_case(rng, n=5, t=12, end_rate=0.2):
    reward = rng.normal(size=(n, t)).astype(np.float32)
    value = rng.normal(size=(n, t + 1)).astype(np.float32)
    terminated = rng.random((n, t)) < end_rate / 2
    truncated = rng.random((n, t)) < end_rate / 2
    truncation_value = np.where(truncated, rng.normal(size=(n, t)), 0).astype(np.float32)
    return reward, value, terminated, truncated, truncation_value


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_in_float64(seed):
    """D-35."""
    case = random_case(np.random.default_rng(seed))
    for got, wanted in zip(generalized_advantage_estimation(*case, 0.97, 0.9), loop_gae(*case, 0.97, 0.9), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_golden_cases_of_the_reference(golden):
    """The reference joins fragments of one worker and treats every end as a termination."""
    data = np.load(golden / "gae.npz")
    for case in range(int(data["n_cases"])):
        get = lambda name, c=case: data[f"case{c}_{name}"]
        order = np.lexsort((get("fragment_id"), get("worker")))
        worker, number = get("worker")[order], get("fragment_id")[order]
        vpred, reward, done = (get(k)[order] for k in ("vpred", "reward", "next_done"))
        continues = np.append((worker[1:] == worker[:-1]) & (number[1:] == number[:-1] + 1), False)
        following = np.where(continues, np.append(vpred[1:, 0], 0), get("next_vpred")[order])
        value = np.concatenate([vpred, following[:, None]], axis=1).astype(np.float32)
        none = np.zeros_like(done)
        gamma, lam = get("gamma_lambda")
        advantage, target = joined_generalized_advantage_estimation(
            reward.astype(np.float32),
            value,
            done,
            none,
            np.zeros_like(reward, np.float32),
            continues,
            gamma,
            lam,
        )
        scale = 1e-5 * max(1.0, np.abs(get("advantage")).max())
        np.testing.assert_allclose(advantage, get("advantage")[order], atol=scale, rtol=1e-5)
        np.testing.assert_allclose(target, get("td_target")[order], atol=scale, rtol=1e-5)


def test_one_trace_cut_into_fragments_gives_what_the_whole_trace_gives():
    """D-15, D-28."""
    rng = np.random.default_rng(1)
    reward, value, terminated, truncated, truncation_value = random_case(rng, n=1, t=24)
    whole, _ = generalized_advantage_estimation(reward, value, terminated, truncated, truncation_value, 0.99, 0.95)
    cut = lambda x: x.reshape(4, 6)
    cut_value = np.stack([value[0, i : i + 7] for i in range(0, 24, 6)])
    joined, _ = joined_generalized_advantage_estimation(
        cut(reward), cut_value, cut(terminated), cut(truncated), cut(truncation_value),
        np.array([True, True, True, False]), 0.99, 0.95,
    )  # fmt: skip
    np.testing.assert_allclose(joined.reshape(1, 24), whole, atol=1e-5)


def test_a_gap_between_fragments_stops_the_carry():
    """D-15."""
    case = random_case(np.random.default_rng(2), n=3)
    gap, _ = joined_generalized_advantage_estimation(*case, np.array([False, True, False]), 0.99, 0.95)
    alone, _ = generalized_advantage_estimation(*case, 0.99, 0.95)
    np.testing.assert_allclose(gap[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(gap[2], alone[2], atol=1e-5)
    assert np.abs(gap[1] - alone[1]).max() > 1e-3


def test_one_trace_with_two_episodes_equals_two_traces():
    rng = np.random.default_rng(3)
    reward, value, terminated, truncated, truncation_value = random_case(rng, n=1, t=10, end_rate=0.0)
    terminated = terminated.copy()
    terminated[0, 4] = True
    both, _ = generalized_advantage_estimation(reward, value, terminated, truncated, truncation_value, 0.99, 0.95)
    parts = []
    for a, b in ((0, 5), (5, 10)):
        part, _ = generalized_advantage_estimation(
            reward[:, a:b], value[:, a : b + 1], terminated[:, a:b], truncated[:, a:b],
            truncation_value[:, a:b], 0.99, 0.95,
        )  # fmt: skip
        parts.append(part)
    np.testing.assert_allclose(both, np.concatenate(parts, axis=1), atol=1e-5)


def test_truncated_episode_bootstraps_from_final_observation_and_terminated_one_does_not():
    """D-12."""
    zeros, no = np.zeros((1, 1), np.float32), np.zeros((1, 1), bool)
    yes, final = ~no, np.full((1, 1), 7.0, np.float32)
    value = np.array([[1.0, 100.0]], np.float32)  # 100: the next episode's first observation
    ended, _ = generalized_advantage_estimation(zeros, value, yes, no, final, 0.5, 0.9)
    cut, _ = generalized_advantage_estimation(zeros, value, no, yes, final, 0.5, 0.9)
    going, _ = generalized_advantage_estimation(zeros, value, no, no, final, 0.5, 0.9)
    assert float(ended[0, 0]) == pytest.approx(-1.0)
    assert float(cut[0, 0]) == pytest.approx(0.5 * 7.0 - 1.0)
    assert float(going[0, 0]) == pytest.approx(0.5 * 100.0 - 1.0)


def test_constant_reward_under_a_time_limit_has_the_infinite_horizon_value():
    """D-12: reward 1 for ever, gamma 0.99, episodes cut every 5 steps: 100 is a fixed point of the targets."""
    shape = (2, 15)
    reward = np.ones(shape, np.float32)
    truncated = np.zeros(shape, bool)
    truncated[:, 4::5] = True
    value = np.full((2, 16), 100.0, np.float32)
    truncation_value = np.where(truncated, 100.0, 0.0).astype(np.float32)
    _, target = generalized_advantage_estimation(
        reward, value, np.zeros(shape, bool), truncated, truncation_value, 0.99, 0.95
    )
    np.testing.assert_allclose(target, 100.0, rtol=1e-5)


def test_normalized_ignores_padding_and_survives_equal_advantages():
    advantage = np.array([[1.0, 3.0, 50.0]], np.float32)
    mask = np.array([[1.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalized(advantage, mask), [[-1.0, 1.0, 0.0]], atol=1e-5)


@pytest.mark.parametrize(("count", "advantage"), [(16384, 0.1), (1000, 0.1), (16, 12345.678), (1000, 12345.678)])
def test_equal_advantages_say_nothing(count, advantage):
    """However their mean is rounded."""
    equal = np.full((count // 8, 8), advantage, np.float32)
    np.testing.assert_allclose(normalized(equal, np.ones_like(equal)), 0.0, atol=1e-3)


def test_normalized_weighs_mean_and_deviation():
    """Against float64; what has no weight has no say, whatever it is."""
    rng = np.random.default_rng(0)
    advantage = (5 + 3 * rng.normal(size=(8, 16))).astype(np.float32)
    weight = rng.choice([0.0, 0.5, 3.0], (8, 16)).astype(np.float32)
    exact = advantage.astype(np.float64)
    mean = np.average(exact, weights=weight)
    deviation = np.sqrt(np.average(np.square(exact - mean), weights=weight))
    found = normalized(advantage, weight)
    np.testing.assert_allclose(found, np.where(weight > 0, (exact - mean) / deviation, 0.0), atol=1e-5)
    np.testing.assert_allclose(normalized(advantage, 7 * weight), found, atol=1e-5)
    for other in (1e6, np.nan):
        np.testing.assert_array_equal(normalized(np.where(weight > 0, advantage, other), weight), found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_an_advantage_that_cannot_be_learnt_from_stays_alone(bad):
    """D-29: the others are normalised as they are without it."""
    advantage = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    broken = advantage.copy()
    broken[1, 2] = bad
    others = np.ones_like(advantage)
    others[1, 2] = 0.0
    expected = np.array(normalized(advantage, others))
    expected[1, 2] = np.float32(bad)
    np.testing.assert_array_equal(normalized(broken, np.ones_like(broken)), expected)


def test_wrong_shapes_are_refused():
    reward, value, terminated, truncated, truncation_value = random_case(np.random.default_rng(0))
    with pytest.raises(AssertionError):
        generalized_advantage_estimation(reward, value[:, :-1], terminated, truncated, truncation_value, 0.99, 0.95)


def loop_vtrace(reward, value, terminated, truncated, truncation_value, log_ratio, discount, trace_lambda, clip):
    """The definition of Espeholt et al. 2018 in float64, v_t and A_t each by themselves."""
    reward, value, truncation_value = (np.asarray(x, np.float64) for x in (reward, value, truncation_value))
    weight = np.minimum(clip, np.exp(np.asarray(log_ratio, np.float64)))
    corrected, advantage = np.zeros_like(reward), np.zeros_like(reward)
    for n in range(reward.shape[0]):
        error_next = 0.0
        for t in reversed(range(reward.shape[1])):
            ended = terminated[n, t] or truncated[n, t]
            following = 0.0 if terminated[n, t] else truncation_value[n, t] if truncated[n, t] else value[n, t + 1]
            carried = 0.0 if ended else error_next
            delta = weight[n, t] * (reward[n, t] + discount * following - value[n, t])
            error_next = delta + discount * trace_lambda * weight[n, t] * carried
            corrected[n, t] = value[n, t] + error_next
            bootstrap = following + trace_lambda * carried  # lambda v + (1 - lambda) V
            advantage[n, t] = weight[n, t] * (reward[n, t] + discount * bootstrap - value[n, t])
    return advantage, corrected


@pytest.mark.parametrize("clip", [1.0, 0.5, 2.0])
def test_vtrace_equals_its_definition_in_float64(clip):
    """D-11."""
    rng = np.random.default_rng(4)
    case = random_case(rng)
    log_ratio = rng.normal(size=case[0].shape).astype(np.float32)
    found = joined_vtrace(*case, np.zeros(5, bool), log_ratio, 0.97, 0.9, clip)
    for got, wanted in zip(found, loop_vtrace(*case, log_ratio, 0.97, 0.9, clip), strict=True):
        np.testing.assert_allclose(got, wanted, atol=3e-5)


def test_vtrace_of_the_policy_that_acted_is_generalised_advantage_estimation():
    case, continues = random_case(np.random.default_rng(5), n=4), np.array([True, False, True, False])
    zeros = np.zeros_like(case[0])
    for got, wanted in zip(
        joined_vtrace(*case, continues, zeros, 0.97, 0.9),
        joined_generalized_advantage_estimation(*case, continues, 0.97, 0.9),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_vtrace_goes_on_across_fragments_and_stays_finite():
    rng = np.random.default_rng(6)
    reward, value, terminated, truncated, truncation_value = random_case(rng, n=1, t=24)
    log_ratio = rng.normal(size=(1, 24)).astype(np.float32) * 100
    whole, _ = joined_vtrace(
        reward, value, terminated, truncated, truncation_value, np.array([False]), log_ratio, 0.99, 0.95
    )
    cut = lambda x: x.reshape(4, 6)
    joined, _ = joined_vtrace(
        cut(reward), np.stack([value[0, i : i + 7] for i in range(0, 24, 6)]), cut(terminated), cut(truncated),
        cut(truncation_value), np.array([True, True, True, False]), cut(log_ratio), 0.99, 0.95,
    )  # fmt: skip
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(joined.reshape(1, 24), whole, atol=1e-5)


def test_vtrace_finds_the_value_of_a_policy_that_did_not_act():
    """D-11: one state, two actions worth 0 and 1, episodes of one step; the actor picks evenly, the policy 1 to 9."""
    policy, actor = np.array([0.1, 0.9]), np.array([0.5, 0.5])
    # Every action as often as the actor takes it.
    reward = np.array([[0.0, 1.0]], np.float32)
    log_ratio = np.log(policy / actor)[None].astype(np.float32)
    ended = np.ones((1, 2), bool)
    value = np.full((1, 3), policy @ reward[0], np.float32)
    error, _ = joined_vtrace(
        reward, value, ended, ~ended, np.zeros_like(reward), np.array([False]), log_ratio, 0.9, 0.9, clip=10.0
    )
    assert float(error.mean()) == pytest.approx(0.0, abs=1e-6)  # the policy's own value is the fixed point
