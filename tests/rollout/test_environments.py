"""Settings reach the environments."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml

from minestudio_jax.config import Config, ConfigError, EnvConfig, RolloutConfig, TrainerConfig
from minestudio_jax.config_checks import validate
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.rollout.environments import (
    check_factory,
    check_rewards,
    embedded_spec,
    factory_tasks,
    make_pool,
    played_tasks,
)
from minestudio_jax.utils.task_files import FOLDER, load_task
from tests.rollout.pools import act_on, play, receive_all


@pytest.fixture
def pool(tmp_path):
    env = EnvConfig(
        factory="tests.scripted_env:make_large",
        options={"episode_length": 2, "chatter": 3000},
        resize=(32, 40),
        recycle_after_steps=4,
        max_concurrent_starts=1,
        max_failures_per_hour=0,
        log_max_mib=1,
    )
    config = Config(env=env, rollout=RolloutConfig(num_envs=2, inference_batch_size=2))
    validate(config)
    pool = make_pool(config, 3, 0, tmp_path, "a session", frozenset({min(os.sched_getaffinity(0))}), env_niceness=19)
    yield pool
    pool.close()


def test_settings_of_environments_in_processes_reach_them(pool, tmp_path):
    assert pool.spec.observation["image"].shape == (32, 40, 3)
    got = receive_all(pool)
    assert got[1][0]["image"].shape == (32, 40, 3)
    assert all(os.sched_getaffinity(pid) == {min(os.sched_getaffinity(0))} for pid in pool.pids())
    assert all(os.getpriority(os.PRIO_PROCESS, pid) == 19 for pid in pool.pids())
    act_on(pool, 0, 1)
    infos = {}
    while len(infos) < 2:
        steps = pool.recv(10.0)
        infos |= {int(i): info for i, info in zip(steps.env_id, steps.info, strict=True) if info}
        pool.send({"choice": np.ones((len(steps.env_id), 1), np.int32)}, steps.env_id)
    assert infos[0]["seed"] != infos[1]["seed"]
    while pool.counters.recycled < 2 or not (tmp_path / "env-03-001.log.1").exists():
        play(pool, 1, 1)
    assert pool.counters.total_failures == 0
    assert (tmp_path / "env-03-001.log.1").stat().st_size == 2**20
    assert (tmp_path / "env-03-000.log").exists()


def test_minecraft_is_given_the_tasks_themselves_and_other_factories_their_names():
    shares = {"hunt_cow": 1.0, "chop_tree": 2.0}
    names = ["chop_tree", "hunt_cow", "chop_tree"]
    for factory in ("minerl", "minestudio", "minestudio_jax.envs.minerl:make"):
        given = factory_tasks(Config(env=EnvConfig(factory=factory, tasks=shares)), names)
        carried = json.loads(json.dumps(given))
        assert [task_from_dict(values, "here") for values in carried] == [load_task(name) for name in names]
        assert factory_tasks(Config(env=EnvConfig(factory=factory)), ["chop_tree"]) == given[:1]
    assert factory_tasks(Config(env=EnvConfig(factory="a:b", tasks=shares)), names) == names
    assert factory_tasks(Config(env=EnvConfig(factory="a:b")), ["chop_tree"]) is None


@pytest.mark.parametrize(
    ("task", "said"), [("no_such_task", "there is no 'no_such_task'"), ("navigate", "navigate.*embedded world only")]
)
def test_a_task_that_minecraft_cannot_play_is_refused_before_anything_starts(task, said):
    with pytest.raises(ConfigError, match=said):
        check_factory(Config(env=EnvConfig(factory="minestudio", task=task)))


@pytest.mark.parametrize("name", ["minerl", "minestudio"])
def test_minecraft_has_short_names_and_its_task_is_no_option(name):
    validate(Config(env=EnvConfig(factory=name, python="/some/python", recycle_after_s=3600.0)))
    with pytest.raises(ConfigError, match=r"env\.options: task='hunt_cow' belongs into --env.task"):
        validate(Config(env=EnvConfig(factory=name, options={"task": "hunt_cow"})))


@pytest.mark.parametrize("factory", ["", "minestudio"])
def test_a_task_that_pays_nothing_is_no_task_to_learn_from(tmp_path, factory):
    """A file of MineStudio's benchmark as it is: it may be evaluated with, and a weight of 0 does no more than that."""
    path = tmp_path / "dig.yaml"
    path.write_text("custom_init_commands: [/give @s minecraft:iron_shovel 1]\ntext: Dig.\n")
    env = EnvConfig(task=str(path), factory=factory)
    check = check_factory if factory else check_rewards
    with pytest.raises(ConfigError, match="has no reward, so nothing can be learnt from it: add 'reward:' to the file"):
        check(Config(env=env))
    check(Config(env=env, trainer=TrainerConfig(task_weights={str(path): 0.0})))
    path.write_text(path.read_text() + "reward: [{name: dirt, event: mine_block, objects: [dirt], reward: 1}]\n")
    check(Config(env=env))


def test_tasks_of_one_run_share_the_mask_that_one_of_them_has(tmp_path):
    """D-61: so that one policy can play both."""
    path = tmp_path / "walk.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load((FOLDER / "chop_tree.yaml").read_text()), "mask": ["attack"]}))
    config = Config(env=EnvConfig(tasks={"chop_tree": 1, str(path): 1}))
    assert embedded_spec(config).observation["action_mask.choice"].shape == (8,)
    assert [bool(task.mask) for task in played_tasks(config).values()] == [False, True]
    given = factory_tasks(Config(env=EnvConfig(tasks=config.env.tasks, factory="minestudio")), ["chop_tree", str(path)])
    assert [values["mask"] for values in given] == [(), ("attack",)]
