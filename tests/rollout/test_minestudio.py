"""MineStudio's real MinecraftSim in its own interpreter, through the pool, against an engine that is a scripted stand-in."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.envs.tasks import RewardTerm, Task, task_to_dict
from minestudio_jax.rollout.env_worker import PermanentEnvironmentFailure
from tests.envs import engines
from tests.envs.engines import ATTACK, HEIGHT, WIDTH, act, seeds
from tests.envs.scripted_engine import frame
from tests.rollout.processes import is_alive

LOGS = RewardTerm("log", "mine_block", ("oak_log",), 1.0)


@pytest.fixture
def play(make_pool, client_python, tmp_path, monkeypatch):
    monkeypatch.setenv("MINESTUDIO_DIR", str(tmp_path / "minestudio"))

    def start(engine=None, **options):
        settings = {
            "render_size": [WIDTH, HEIGHT], "display": "minerl_headless", "work_dir": str(tmp_path / "work"),
            "launch_command": engines.command(diary=tmp_path / "diary", **(engine or {})), "num_empty_frames": 2,
        }  # fmt: skip
        return make_pool(python=client_python, factory="tests.envs.stubbed_minestudio:make", **{**settings, **options})

    return start


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary"


def test_every_world_has_a_seed_and_its_end_is_a_termination_only(play, diary):
    """MinecraftSim has a seed for the first world only, and says of every end that it is a truncation, too."""
    pool = play({"episode": 5}, preferred_spawn_biome="plains", inventory={"3": {"type": "bow", "quantity": 1}})
    for number in range(7):
        steps = pool.recv(30.0)
        episode, step = divmod(number, 3)
        image = frame(episode, step + 2, seeds(diary)[episode], HEIGHT, WIDTH)  # two ticks have gone by at first
        np.testing.assert_array_equal(steps.obs[0]["image"], image)
        assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([number in (3, 6)], [False])
        act(pool, steps)
    assert len(set(seeds(diary))) == len(seeds(diary)) >= 3
    assert next(words[1:3] for words in engines.told(diary, "mission")) == ["plains", "3:bow:1"]
    assert pool.counters.total_failures == 0


def test_a_task_is_rewarded_by_what_this_episode_adds_to_the_statistics(play):
    pool = play(task=task_to_dict(Task("chop", "Chop.", (LOGS,), time_limit=4)))
    rewards = []
    for number in range(9):
        steps = pool.recv(30.0)
        rewards.append(float(steps.reward[0]))
        assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([False], [number in (4, 8)])
        act(pool, steps, ATTACK if number != 2 else 0)
    assert rewards == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_callbacks_of_minestudio_press_keys_but_neither_pay_nor_end(play, tmp_path):
    spy = {"path": "tests.envs.stubbed_minestudio:Spy", "arguments": {"end_at": 2}}
    pool = play(callbacks=[spy], task=task_to_dict(Task("chop", "Chop.", (LOGS,), time_limit=100)))
    for number in range(5):
        steps = pool.recv(30.0)
        assert steps.reward.tolist() == [float(number > 0)], "the spy attacks"
        assert steps.terminated.tolist() == [False]
        act(pool, steps)
    pool.close()
    assert "the spy is told of the end" in (tmp_path / "env-00-000.log").read_text()


def test_a_callback_that_is_none_is_refused(play):
    with pytest.raises(PermanentEnvironmentFailure, match=r"callbacks: .*'Spy'.*SpeedTestCallback"):
        play(callbacks=[{"name": "Spy"}])


def test_a_step_that_breaks_never_took_place(play, tmp_path, diary):
    pool = play({"fault": "error", "fault_after": 4, "fault_once": tmp_path / "once"})
    shown, failed = [], []
    for _ in range(5):
        steps = pool.recv(60.0)
        shown.append(steps.obs[0]["image"][0, 0, :2].tolist())
        failed.append(bool(steps.failed[0]))
        act(pool, steps)
    assert shown == [[0, 2], [0, 3], [0, 4], [0, 2], [0, 3]]
    assert failed == [False, False, False, True, False]
    assert {name for name, count in pool.counters.failures.items() if count} == {"error_info"}
    assert not is_alive(engines.lives(diary)[0].pid)


def test_what_breaks_in_a_reset_is_no_hang_however_short_a_step_may_be(play, tmp_path):
    """The client steps after a new world, for which it has as long as for the reset."""
    engine = {"fault": "error", "fault_after": 1, "fault_once": tmp_path / "once"}
    pool = play(engine, step_timeout_s=1e-3, preferred_spawn_biome="mountains")
    assert pool.recv(60.0).first.tolist() == [True]
    assert {name for name, count in pool.counters.failures.items() if count} == {"error_info"}
    assert {words[1] for words in engines.told(tmp_path / "diary", "mission")} == {"extreme_hills"}


def test_without_an_engine_it_is_said_where_it_is_missing(play, tmp_path):
    with pytest.raises(PermanentEnvironmentFailure, match=r"there is no engine at .*minestudio.*mcprec"):
        play(launch_command=["/bin/sh", "{jar}"])


def test_without_minestudio_it_is_said_what_to_install_and_where(make_pool):
    with pytest.raises(PermanentEnvironmentFailure, match="no package 'minestudio': there, pip install minestudio"):
        make_pool(factory="minestudio_jax.envs.minestudio:make")
