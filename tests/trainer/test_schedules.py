"""Coefficients from iteration to iteration."""

from __future__ import annotations

import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer.schedules import Coefficients, coefficients


def rates(**settings):
    config = TrainerConfig(learning_rate=0.1, num_iterations=10, **settings)
    return [float(coefficients(config, i, 1).learning_rate) for i in range(12)]


def test_the_learning_rate_is_constant_unless_told_otherwise():
    assert rates() == pytest.approx([0.1] * 12)


def test_it_rises_falls_or_both():
    assert rates(learning_rate_warmup=3) == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 9])
    assert rates(anneal_lr_linearly=True) == pytest.approx([0.1 - 0.01 * i for i in range(10)] + [0, 0], abs=1e-8)
    both = rates(learning_rate_warmup=1, anneal_lr_linearly=True)
    assert both[:3] == pytest.approx([0.05, 0.09, 0.08])


def test_weights_decay_and_the_warm_up_ends():
    config = TrainerConfig(
        kl_reference_coef=0.2, kl_reference_decay=0.5, entropy_bonus_coef=0.01, entropy_bonus_decay=0.1, vf_warmup=2
    )
    third = coefficients(config, 2, 7)
    assert float(third.kl_reference) == pytest.approx(0.05)
    assert float(third.entropy_bonus) == pytest.approx(1e-4)
    assert [bool(coefficients(config, i, 1).warm_up) for i in range(3)] == [True, True, False]
    assert third.version == 7


def test_what_is_compiled_for_is_what_is_given():
    for abstract, given in zip(Coefficients.abstract(), coefficients(TrainerConfig(), 0, 0), strict=True):
        assert (abstract.shape, abstract.dtype) == (given.shape, given.dtype)
