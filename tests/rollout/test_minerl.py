"""MineRL's real client code in its own interpreter, through the pool, against an engine that is a scripted stand-in.

The client is MineStudio's fork, which is what a package registry has of it; CONTRIBUTING.md says how to get one.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

from minestudio_jax.envs.callbacks.for_task import SETTLE_TICKS
from minestudio_jax.envs.resize import resize_bilinear
from minestudio_jax.envs.tasks import MobGroup, RewardTerm, Stack, Task, task_to_dict
from minestudio_jax.rollout.env_worker import PermanentEnvironmentFailure
from tests.envs import engines
from tests.envs.engines import ATTACK, HEIGHT, WIDTH, act, seeds
from tests.envs.scripted_engine import frame
from tests.rollout.processes import is_alive, wait_until

FACTORY = "minestudio_jax.envs.minerl:make"
LOGS = RewardTerm("log", "mine_block", ("oak_log",), 1.0)


@pytest.fixture
def play(make_pool, client_python, tmp_path, monkeypatch):
    """A pool of MineRL environments whose engines are scripted; `engine` are arguments of the stand-in's program."""
    monkeypatch.setenv("MINESTUDIO_DIR", str(tmp_path / "minestudio"))  # the client keeps a database there

    def start(engine: dict[str, Any] | None = None, num_envs: int = 1, **options: Any) -> Any:
        settings = {"client": "minestudio", "resolution": [WIDTH, HEIGHT], "display": "minerl_headless"}
        if "port" not in options:
            settings["work_dir"] = str(tmp_path / "work")
            settings["launch_command"] = engines.command(diary=tmp_path / "diary", **(engine or {}))
        else:
            del settings["display"]
        return make_pool(num_envs, python=client_python, factory=FACTORY, **{**settings, **options})

    return start


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary"


def test_frames_are_right_side_up_and_worlds_have_seeds(play, diary):
    pool = play({"episode": 3, "end": "mission", "chatter": 20})  # more than a pipe holds, if nobody read it
    for number in range(9):
        steps = pool.recv(20.0)
        episode, step = divmod(number, 3)
        np.testing.assert_array_equal(steps.obs[0]["image"], frame(episode, step, seeds(diary)[episode], HEIGHT, WIDTH))
        assert steps.first.tolist() == [step == 0]
        assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([number in (3, 6)], [False])
        act(pool, steps)
    assert len(set(seeds(diary))) == len(seeds(diary)) >= 3
    assert {words[3] for words in engines.told(diary, "mission")} == {"True"}, "death ends a mission"


def test_a_run_of_the_same_seed_has_the_same_worlds(play, diary):
    counts = [0]
    for _ in range(2):
        pool = play({"episode": 1})
        for _ in range(3):
            act(pool, pool.recv(20.0))
        pool.recv(20.0)
        pool.close()
        counts.append(len(seeds(diary)))
    first, second = (seeds(diary)[begin : begin + 4] for begin in counts[:2])
    assert first == second
    assert len(set(first)) == 4


def test_frames_of_full_size_are_resized_as_vpt_does(play, diary):
    pool = play(resolution=[640, 360], settings={"resize": (128, 128)})
    act(pool, pool.recv(20.0))
    image = pool.recv(20.0).obs[0]["image"]
    np.testing.assert_array_equal(image, resize_bilinear(frame(0, 1, seeds(diary)[0], 360, 640), 128, 128))


def test_a_mission_asks_for_the_group_of_biomes_that_the_engine_knows(play, diary):
    """Its commands know mountains; a mission that asks for them is one that it fails at."""
    play(task=task_to_dict(Task("chop", "Chop.", (LOGS,), biome="mountains")), commands=False).recv(20.0)
    assert next(words[1] for words in engines.told(diary, "mission")) == "extreme_hills"


@pytest.mark.parametrize("end", ["death", "mission"])
def test_an_episode_of_a_task_is_rewarded_and_ends(play, diary, end):
    """Every tick of attack is a log; the engine ends the episode in its fourth step."""
    task = Task("chop", "Chop.", (LOGS,), time_limit=50, biome="forest", inventory=(Stack(("iron_axe",), slot="0"),))
    pool = play({"episode": SETTLE_TICKS + 4, "end": end}, task=task_to_dict(task), commands=False)
    rewards = []
    for number in range(5):
        steps = pool.recv(20.0)
        rewards.append(float(steps.reward[0]))
        assert steps.terminated.tolist() == [number == 4]
        assert steps.truncated.tolist() == [False]
        act(pool, steps, ATTACK)
    assert rewards == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert next(words[1:3] for words in engines.told(diary, "mission")) == ["forest", "0:iron_axe:1"]
    assert pool.counters.total_failures == 0


def test_a_time_limit_truncates_and_its_last_observation_is_kept(play, diary):
    pool = play(task=task_to_dict(Task("chop", "Chop.", (LOGS,), time_limit=2)), commands=False)
    for _ in range(2):
        act(pool, pool.recv(20.0))
    steps = pool.recv(20.0)
    assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([False], [True])
    np.testing.assert_array_equal(
        steps.final_obs[0]["image"], frame(0, SETTLE_TICKS + 2, seeds(diary)[0], HEIGHT, WIDTH)
    )
    np.testing.assert_array_equal(steps.obs[0]["image"], frame(1, SETTLE_TICKS, seeds(diary)[1], HEIGHT, WIDTH))


def test_commands_are_sent_to_an_engine_that_takes_them(play, diary):
    pool = play(
        task=task_to_dict(Task("shoot", "Shoot.", (LOGS,), mobs=(MobGroup("sheep", 2),), commands=("/say hello",)))
    )
    pool.recv(20.0)
    said = [" ".join(words) for words in engines.told(diary, "chat")]
    assert "/say hello" in said
    assert sum("sheep" in line for line in said) == 2


def test_a_task_that_needs_commands_is_refused_for_an_engine_that_takes_none(play):
    task = Task("shoot", "Shoot.", (LOGS,), mobs=(MobGroup("sheep", 2),))
    with pytest.raises(PermanentEnvironmentFailure, match=r"'shoot' needs Minecraft's commands for its mobs"):
        play(task=task_to_dict(task), commands=False)


@pytest.mark.parametrize(
    ("engine", "options", "cause", "said"),
    [
        ({"fault": "error"}, {}, "error_info", "Connection timed out!"),
        ({"fault": "stall"}, {"step_timeout_s": 0.7}, "hang", "still runs"),
        ({"fault": "die_mid_frame"}, {}, "death", "was killed by signal 9"),
        ({"fault": "garbage"}, {}, "exception", "cannot reshape"),
        ({"exit_at": 3}, {}, "death", "ended with status 3"),
    ],
)
def test_a_step_that_breaks_never_took_place(play, tmp_path, diary, caplog, engine, options, cause, said):
    """The third step breaks, in the first life only: the fragment ends after the second, and a new engine goes on."""
    after = {} if "exit_at" in engine else {"fault_after": 2}
    pool = play({**engine, **after, "fault_once": tmp_path / "once"}, **options)
    shown, flags = [], []
    for _ in range(6):
        steps = pool.recv(30.0)
        shown.append(steps.obs[0]["image"][0, 0, :2].tolist())
        flags.append([bool(f[0]) for f in (steps.first, steps.failed, steps.terminated, steps.truncated)])
        act(pool, steps)
    assert shown == [[0, 0], [0, 1], [0, 2], [0, 0], [0, 1], [0, 2]]
    assert flags[3] == [True, True, False, False]
    assert [any(row[1:]) for row in flags] == [False, False, False, True, False, False]
    assert {name for name, count in pool.counters.failures.items() if count} == {cause}
    assert said in caplog.text
    first, second = engines.lives(diary)
    assert not is_alive(first.pid)
    assert not first.folder.exists()
    assert is_alive(second.pid)


def test_slow_missions_are_waited_for_and_too_slow_ones_are_failures(play, diary):
    pool = play({"fault": "slow_start", "fault_s": 0.5})
    assert pool.recv(20.0).first.tolist() == [True]
    pool.close()
    pool = play({"fault": "slow_start", "fault_s": 60.0}, reset_timeout_s=0.5, max_failures_per_hour=0)
    with pytest.raises(Exception, match=r"the engine broke in a reset after 0\.\d s"):
        pool.recv(20.0)


def test_nothing_is_left_of_a_host_that_was_killed(play, diary, tmp_path):
    """The parent sees the host's death and kills what the host cannot any more."""
    pool = play({"child": True})
    act(pool, pool.recv(20.0))
    pool.recv(20.0)
    (life,) = engines.lives(diary)
    os.kill(pool.pids()[0], signal.SIGKILL)
    pool.attend()
    assert wait_until(lambda: pool.attend() or not (is_alive(life.pid) or is_alive(life.child)))


def test_a_planned_replacement_closes_the_engine_and_removes_its_folder(play, diary, tmp_path):
    from minestudio_jax.rollout.recycling import Recycling

    pool = play({"episode": 2, "child": True}, recycling=Recycling(0.0, 2, 0))
    for _ in range(4):
        act(pool, pool.recv(20.0))
    assert pool.counters.recycled >= 1
    assert pool.counters.total_failures == 0
    first, second, *_ = engines.lives(diary)
    assert not (is_alive(first.pid))
    assert not (is_alive(first.child))
    assert not (first.folder.exists())
    assert is_alive(second.pid)
    pool.close()
    assert list((tmp_path / "work").iterdir()) == []


def test_an_engine_that_runs_already_is_played_and_left(play, tmp_path, diary):
    import subprocess

    words = [word.format(port=0) for word in engines.command(diary=diary)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        port = next(int(line.split()[-1]) for line in engine.stdout if "MalmoEnvServer" in line)
        pool = play(port=port)
        act(pool, pool.recv(20.0))
        assert pool.recv(20.0).obs[0]["image"][0, 0, 1] == 1
        pool.close()
        assert engine.poll() is None
        engine.kill()


def test_ten_thousand_steps_and_not_one_that_was_not(play, diary):
    """Two environments of which one breaks every 1,500 steps; every frame that is received is the one that is due."""
    pool = play({"episode": 250, "fault": "error", "fault_after": 1500}, 2, resolution=[16, 9])
    due, received, failed = [(0, 0), (0, 0)], 0, 0
    while received < 10_000:
        steps = pool.recv(30.0)
        for k, i in enumerate(steps.env_id.tolist()):
            episode, step = due[i]
            if steps.failed[k]:
                failed += 1
                episode = step = 0
            elif steps.terminated[k]:
                assert step == 250
                episode, step = episode + 1, 0
            shown = steps.obs[k]["image"]
            assert (shown[..., 0] == episode % 256).all()
            assert (shown[..., 1] == step % 256).all()
            assert steps.first[k] == (step == 0)
            due[i] = (episode, step + 1)
            received += not steps.failed[k]
        act(pool, steps)
    assert failed >= 4
    assert 0 <= pool.counters.total_failures - failed <= 2  # what has broken since is not received yet
    assert {name for name, count in pool.counters.failures.items() if count} == {"error_info"}


def test_without_the_client_it_is_said_what_to_install_and_where(make_pool):
    with pytest.raises(PermanentEnvironmentFailure) as failure:
        make_pool(factory=FACTORY)
    for words in ("env.python is", "no package 'minerl'", "pip install git+https://github.com/minerllabs/minerl"):
        assert words in str(failure.value)
