"""Tasks are spread over environments as their shares say."""

from __future__ import annotations

from collections import Counter

import pytest

from minestudio_jax.utils.task_assignment import assigned_tasks


@pytest.mark.parametrize("shares", [{"a": 1}, {"a": 1, "b": 1}, {"a": 3, "b": 1}, {"a": 0.5, "b": 0.3, "c": 0.2}])
def test_every_beginning_has_the_tasks_in_proportion(shares):
    total = sum(shares.values())
    tasks = assigned_tasks(shares, 60)
    for length in range(1, 61):
        counts = Counter(tasks[:length])
        assert all(abs(counts[task] - length * share / total) < 1 for task, share in shares.items())


def test_more_environments_change_nothing_for_the_others():
    shares = {"a": 2, "b": 5, "c": 1}
    assert assigned_tasks(shares, 50)[:20] == assigned_tasks(shares, 20)
