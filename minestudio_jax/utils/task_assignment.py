"""Which environment plays which task, when a run has several."""

from __future__ import annotations

from collections.abc import Mapping


def assigned_tasks(shares: Mapping[str, float], num_envs: int) -> list[str]:
    """Task of each of `num_envs` environments.

    Every beginning of the list has the tasks in proportion to their shares, as nearly as whole environments can (smooth
    weighted round-robin): so has each worker, and one more environment changes nothing for the others.

    Args:
      shares: task -> share, above 0.
      num_envs: how many.
    """
    total = sum(shares.values())
    credit = dict.fromkeys(shares, 0.0)
    tasks = []
    for _ in range(num_envs):
        for task, share in shares.items():
            credit[task] += share
        most = max(credit, key=lambda task: credit[task])
        credit[most] -= total
        tasks.append(most)
    return tasks
