from __future__ import annotations

import pytest

from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout.crash_budget import CrashBudget
from minestudio_jax.rollout.env_worker import InstanceFailure, PermanentEnvironmentFailure

FAILURE = InstanceFailure("hang", "it hung")


def test_failures_of_the_last_hour_count():
    budget = CrashBudget(4, 2, "a:b")
    budget.ever_ready = True
    for now in (0.0, 10.0, 3605.0, 3700.0):
        budget.charge(FAILURE, now)
    with pytest.raises(EnvironmentFailure, match=r"3 .*env\.max_failures_per_hour=2.*it hung"):
        budget.charge(FAILURE, 3701.0)


def test_three_attempts_of_each_without_any_success_are_enough():
    budget = CrashBudget(2, 100, "a:b")
    for _ in range(5):
        budget.charge(FAILURE, 0.0)
    with pytest.raises(EnvironmentFailure, match=r"none of 2 environments got ready in 6 attempts.*env\.factory='a:b'"):
        budget.charge(FAILURE, 0.0)


def test_what_no_restart_heals_is_raised_as_it_is():
    with pytest.raises(PermanentEnvironmentFailure, match="no such module"):
        CrashBudget(2, 100, "a:b").charge(PermanentEnvironmentFailure("no such module"), 0.0)
