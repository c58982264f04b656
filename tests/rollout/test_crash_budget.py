from __future__ import annotations

import pytest

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout.crash_budget import CrashBudget, LastHour
from minestudio_jax.rollout.env_worker import InstanceFailure, PermanentEnvironmentFailure

FAILURE = InstanceFailure("hang", "it hung")


def test_failures_of_the_last_hour_count():
    budget = CrashBudget(4, 2, "a:b")
    budget.ever_ready = True
    for now in (0.0, 10.0, 3605.0, 3700.0):
        budget.charge(FAILURE, True, now)
    with pytest.raises(EnvironmentFailure, match=r"3 .*env\.max_failures_per_hour=2.*it hung"):
        budget.charge(FAILURE, True, 3701.0)


def test_three_attempts_of_each_without_any_success_are_enough():
    budget = CrashBudget(2, 100, "a:b")
    for _ in range(5):
        budget.charge(FAILURE, False, 0.0)
    with pytest.raises(EnvironmentFailure, match=r"none of 2 environments got ready in 6 attempts.*env\.factory='a:b'"):
        budget.charge(FAILURE, False, 0.0)


def test_what_no_restart_heals_is_raised_as_it_is():
    with pytest.raises(PermanentEnvironmentFailure, match="no such module"):
        CrashBudget(2, 100, "a:b").charge(PermanentEnvironmentFailure("no such module"), False, 0.0)


def test_an_environment_that_was_ready_once_can_be_built_whatever_a_restart_says():
    """D-39: such as a library that cannot be mapped while memory is short."""
    budget = CrashBudget(2, 1, "a:b")
    budget.ever_ready = True
    budget.charge(PermanentEnvironmentFailure("failed to map segment"), True, 0.0)
    with pytest.raises(EnvironmentFailure, match=r"env\.max_failures_per_hour=1.*failed to map segment"):
        budget.charge(PermanentEnvironmentFailure("failed to map segment"), True, 1.0)


def test_what_was_more_than_an_hour_ago_does_not_count():
    count = LastHour()
    assert [count.add(now) for now in (0.0, 1.0, 3600.0, 3600.5, 3601.5, 9000.0)] == [1, 2, 3, 3, 3, 1]
