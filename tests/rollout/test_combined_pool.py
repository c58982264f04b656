"""Several pools as one: the same environments as in pools of their own, under other numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minestudio_jax.config import Config, EnvConfig, RolloutConfig
from minestudio_jax.rollout.combined_pool import CombinedPool
from minestudio_jax.rollout.env_pool import PoolCounters
from minestudio_jax.rollout.environments import embedded_spec, make_pool, worker_tasks
from tests.in_process_pool import InProcessPool

FIELDS = ("first", "reward", "terminated", "truncated", "failed")


def ends(env, episode, step):
    return ("terminated", "truncated", "failed")[(env + episode) % 3] if step == 2 + env else ""


def pools():
    return [InProcessPool(2, ends), InProcessPool(3, ends, lambda *where: -2.0, ready=2)]


def rows(steps, env_id):
    """What was received of one environment."""
    k = steps.env_id.tolist().index(env_id)
    final = steps.final_obs[k]["image"].tolist() if steps.truncated[k] else steps.final_obs[k]
    return [getattr(steps, name)[k].item() for name in FIELDS], steps.obs[k]["image"].tolist(), final


def act(pool, steps):
    pool.send({"choice": (steps.env_id[:, None] % 4).astype(np.int32)}, steps.env_id)


def test_every_environment_goes_through_what_it_would_go_through_alone():
    together, (one, other) = CombinedPool(pools()), pools()
    assert together.num_envs == 5
    for _ in range(30):
        steps, alone = together.recv(1.0), [one.recv(1.0), other.recv(1.0)]
        assert steps.env_id.tolist() == alone[0].env_id.tolist() + [2 + i for i in alone[1].env_id]
        for env_id in steps.env_id:
            part, number = (alone[0], env_id) if env_id < 2 else (alone[1], env_id - 2)
            assert rows(steps, env_id) == rows(part, number)
        assert len(steps.info) == len(steps.env_id)
        act(together, steps)
        for pool, its in zip((one, other), alone, strict=True):
            begin = 0 if pool is one else 2
            pool.send({"choice": ((begin + its.env_id[:, None]) % 4).astype(np.int32)}, its.env_id)


def test_pools_that_have_nothing_do_not_keep_the_others_waiting():
    pool = CombinedPool(pools())
    steps = pool.recv(1.0)
    assert pool.recv(1.0).env_id.tolist() == [4]  # the second one hands out two at a time
    assert pool.recv(0.0) is None
    back = steps.env_id[:1]
    pool.send({"choice": np.zeros((1, 1), np.int32)}, back)
    assert pool.recv(1.0).env_id.tolist() == [0]


def test_counters_are_sums():
    parts = pools()
    parts[0].counters = PoolCounters(2, 1, {"death": 3})
    parts[1].counters = PoolCounters(3, 0, {"death": 1, "hang": 2})
    counters = CombinedPool(parts).counters
    assert (counters.starts, counters.recycled) == (5, 1)
    assert {cause: n for cause, n in counters.failures.items() if n} == {"death": 4, "hang": 2}
    assert CombinedPool(parts).counters.total_failures == 6


@pytest.fixture(scope="module")
def config():
    options = {"size": 24, "height": 20, "ray_strides": 8, "time_limit": 6}
    env = EnvConfig(tasks={"chop_tree": 2, "mine_cobblestone": 1}, options=options, height=16, width=16)
    return Config(env=env, rollout=RolloutConfig(num_envs=4, inference_batch_size=4, num_rollout_workers=3))


def test_a_workers_environments_play_their_tasks_next_to_each_other(config, tmp_path):
    tasks = [worker_tasks(config, worker) for worker in range(3)]
    assert all(mine == sorted(mine) for mine in tasks)
    assert sum(mine.count("chop_tree") for mine in tasks) == 8
    pool = make_pool(config, 1, 0, tmp_path, "s")
    assert (pool.num_envs, pool.spec) == (4, embedded_spec(config))
    first = pool.recv(1.0)
    pool.send({"choice": np.zeros((4, 1), np.int32)}, first.env_id)
    assert pool.recv(1.0).env_id.tolist() == [0, 1, 2, 3]
    assert len({obs["image"].tobytes() for obs in first.obs}) == 4


def test_tasks_of_different_actions_are_refused_by_name(config):
    mixed = dataclasses.replace(config.env, tasks={"chop_tree": 1, "hunt_cow": 1})
    with pytest.raises(ValueError, match=r"'hunt_cow' has the actions .*env.action_set=vpt"):
        embedded_spec(dataclasses.replace(config, env=mixed))
    vpt = dataclasses.replace(mixed, action_set="vpt")
    assert set(embedded_spec(dataclasses.replace(config, env=vpt)).action) == {"buttons", "camera"}


def test_with_vpts_actions_one_can_craft_in_every_task_of_a_run_that_has_it_in_one(config, tmp_path):
    env = dataclasses.replace(config.env, tasks={"chop_tree": 1, "mine_iron": 1}, action_set="vpt")
    mixed = dataclasses.replace(config, env=env)
    assert set(embedded_spec(mixed).action) == {"buttons", "camera", "craft"}
    pool = make_pool(mixed, 0, 0, tmp_path, "s")
    assert pool.spec == embedded_spec(mixed)
    first = pool.recv(1.0)
    pool.send({name: np.zeros((4, 1), np.int32) for name in pool.spec.action}, first.env_id)
    assert pool.recv(1.0).env_id.tolist() == [0, 1, 2, 3]
    alone = dataclasses.replace(env, tasks={"chop_tree": 1})
    assert set(embedded_spec(dataclasses.replace(config, env=alone)).action) == {"buttons", "camera"}
