from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.policies.value_normalizer import ValueNormalizer


def test_statistics_are_the_mean_and_deviation_of_what_they_saw():
    target = jnp.asarray(np.random.default_rng(0).normal(5.0, 3.0, (64, 64)), jnp.float32)
    normalizer = ValueNormalizer()
    statistics = normalizer.initial()
    assert [float(x) for x in normalizer.moments(statistics)] == [0.0, 1.0]
    for _ in range(3):
        statistics = normalizer.updated(statistics, target, jnp.ones_like(target))
    mean, scale = normalizer.moments(statistics)
    assert float(mean) == pytest.approx(float(target.mean()), rel=1e-4)
    assert float(scale) == pytest.approx(float(target.std()), rel=1e-3)


def test_targets_too_large_to_be_squared_do_not_touch_the_statistics():
    """D-26: float32 holds them, but not their squares, nor the sum of the squares of many."""
    target = np.random.default_rng(0).normal(5.0, 3.0, (8, 8)).astype(np.float32)
    normalizer, ones = ValueNormalizer(), np.ones_like(target)
    before = normalizer.updated(normalizer.initial(), target, ones)
    one_large, others = target.copy(), ones.copy()
    one_large[3, 4], others[3, 4] = 1e20, 0.0
    for found, wanted in zip(
        normalizer.updated(before, one_large, ones), normalizer.updated(before, target, others), strict=True
    ):
        assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    assert normalizer.updated(before, np.full_like(target, 1.8e19), ones) == before
    assert normalizer.updated(before, np.full_like(target, np.nan), ones) == before


def test_only_the_ratio_of_weights_matters_to_the_statistics():
    """However small they are."""
    target = np.random.default_rng(0).normal(5.0, 3.0, (8, 8)).astype(np.float32)
    normalizer, weight = ValueNormalizer(), np.arange(64, dtype=np.float32).reshape(8, 8)
    moments = [
        [float(x) for x in normalizer.moments(normalizer.updated(normalizer.initial(), target, scale * weight))]
        for scale in (1.0, 1e-5)
    ]
    assert moments[0] == pytest.approx(moments[1], rel=1e-4)


CASES = {
    "default": ValueNormalizer.reference(),
    "beta99": ValueNormalizer(0.99, preserves_outputs=False),
    "per_element": ValueNormalizer(0.999, preserves_outputs=False, per_element=True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("style", ["BT1", "BT"])
def test_golden_value_normalizer(golden, case, style):
    """value_normalizer.npz: seven calls from zero statistics, relative to 2e-5, the float32 rounding of 1 - 0.99999."""
    normalizer = CASES[case]
    statistics = normalizer.initial()
    data = np.load(golden / "value_normalizer.npz")
    for i in range(7):
        before = {name: data[f"{case}_{style}_{i}_{name}"] for name in ("target", "pred", "train", "denorm_before")}
        mean, scale = normalizer.moments(statistics)
        np.testing.assert_allclose(before["pred"] * scale + mean, before["denorm_before"], rtol=2e-5, atol=2e-5)
        if before["train"]:
            target = jnp.asarray(before["target"], jnp.float32)
            statistics = normalizer.updated(statistics, target, jnp.ones_like(target))
        mean, scale = normalizer.moments(statistics)

        def expect(value, name, i=i):
            wanted = data[f"{case}_{style}_{i}_{name}"]
            np.testing.assert_allclose(np.squeeze(value), np.squeeze(wanted), rtol=4e-5, atol=1e-7, err_msg=name)

        expect(statistics.mean_sum, "running_mean")
        expect(statistics.square_sum, "running_mean_sq")
        expect(statistics.debias, "debiasing_term")
        expect(mean, "mean")
        expect(jnp.square(scale), "var")
        np.testing.assert_allclose(
            before["pred"] * scale + mean, data[f"{case}_{style}_{i}_denorm_after"], rtol=2e-5, atol=2e-5
        )
        loss = jnp.square(before["pred"] - (before["target"] - mean) / scale)
        np.testing.assert_allclose(np.squeeze(loss), np.squeeze(data[f"{case}_{style}_{i}_loss"]), rtol=2e-4)
