"""How tests play in pools of scripted environments, and what those tell."""

from __future__ import annotations

import numpy as np


def act(pool, steps):
    act_on(pool, *steps.env_id.tolist())


def act_on(pool, *ids):
    pool.send({"choice": np.ones((len(ids), 1), np.int32)}, np.array(ids, np.int32))


def receive_all(pool):
    """Receives every environment once; env -> (observation, final observation)."""
    got = {}
    while len(got) < pool.num_envs:
        steps = pool.recv(10.0)
        got |= {int(i): pair for i, *pair in zip(steps.env_id, steps.obs, steps.final_obs, strict=True)}
    return got


def received(steps):
    """One row for each environment: (its pixel, reward, flags, pixel of the final observation)."""
    for k, i in enumerate(steps.env_id):
        flags = {f for f in ("first", "terminated", "truncated", "failed") if getattr(steps, f)[k]}
        final = steps.final_obs[k]["image"][0, 0].tolist() if steps.truncated[k] else None
        yield int(i), (steps.obs[k]["image"][0, 0].tolist(), float(steps.reward[k]), flags, final)


def play(pool, *counts, got=None):
    """Receives and sends until environment i was received counts[i] times at least; env -> its rows in order."""
    got = got or {i: [] for i in range(len(counts))}
    wanted = [len(got[i]) + count for i, count in enumerate(counts)]
    while any(len(got[i]) < count for i, count in enumerate(wanted)):
        steps = pool.recv(10.0)
        assert steps is not None, f"nothing came after {got}"
        for i, row in received(steps):
            got[i].append(row)
        act(pool, steps)
    return got


def diary_of(folder):
    """What scripted environments wrote to `folder/diary`: (what, index, time) in order."""
    entries = [line.split() for line in (folder / "diary").read_text().splitlines()]
    return [(what, int(index), float(when)) for what, index, when in entries]
