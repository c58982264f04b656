from __future__ import annotations

import json
import logging
import threading
import time

import av
import numpy as np
import pytest

from minestudio_jax.envs.callbacks import record
from minestudio_jax.envs.callbacks.for_task import callbacks_for
from minestudio_jax.envs.callbacks.record import Record
from minestudio_jax.envs.callbacks.time_limit import TimeLimit
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.utils.task_files import load_task
from tests.envs.scripted_simulator import NOTHING, ScriptedSimulator


class OddSimulator(ScriptedSimulator):
    """Frames that no codec takes: both sides are odd."""

    frame_shape = (33, 49, 3)

    def _frame(self):
        frame = super()._frame()
        return type(frame)(np.full(self.frame_shape, 200, np.uint8), frame.done, frame.statistics, frame.state)


def play(env, episodes, steps=4):
    """A new version of the policy acts in every third step."""
    for episode in range(episodes):
        env.reset()
        for step in range(steps):
            env.policy_version = (episode * steps + step) // 3
            env.step(NOTHING)


def test_every_so_many_episodes_are_videos_with_what_came_of_them(tmp_path):
    """D-50: exactly those, whole, in a game whose frames have odd sides, and by a thread."""
    env = MinecraftEnvironment(OddSimulator(), [TimeLimit(4), Record(str(tmp_path / "videos"), every=2, index=3)])
    play(env, 4)
    env.close()
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == [f"env-3-episode-{i}.{kind}" for i in (0, 2) for kind in ("json", "mp4")]
    with av.open(str(tmp_path / "videos/env-3-episode-2.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (32, 48, 3)
    assert np.abs(frames[0].astype(int) - 200).max() < 12
    about = json.loads((tmp_path / "videos/env-3-episode-2.json").read_text())
    assert (about["env"], about["episode"], about["steps"], about["truncated"]) == (3, 2, 4, True)
    assert about["policy_versions"] == [2, 3], "of the steps 8 to 11"


def test_a_codec_that_fails_costs_the_video_and_nothing_else(tmp_path, monkeypatch, caplog):
    """D-50: the episode never notices."""

    def fails(self, frame):
        raise RuntimeError("no such codec")

    monkeypatch.setattr(record.VideoWriter, "write", fails)
    env = MinecraftEnvironment(ScriptedSimulator(), [TimeLimit(4), Record(str(tmp_path))])
    with caplog.at_level(logging.WARNING):
        play(env, 3)
        env.close()
    assert "is given up" in caplog.text
    assert "no such codec" in caplog.text


def test_an_encoder_that_is_too_slow_costs_the_video_and_no_time(tmp_path, monkeypatch, caplog):
    """D-50: nobody waits for it."""
    goes_on = threading.Event()
    monkeypatch.setattr(record.VideoWriter, "write", lambda self, frame: goes_on.wait(20))
    env = MinecraftEnvironment(ScriptedSimulator(), [TimeLimit(1000), Record(str(tmp_path))])
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        play(env, 1, steps=400)
    assert time.monotonic() - began < 5
    assert "200 frames wait to be encoded" in caplog.text
    goes_on.set()
    env.close()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_an_interval_that_is_none_is_refused(tmp_path, every):
    """D-50: 0 divides nothing."""
    with pytest.raises(ValueError, match=r"record: every=.* must be a number of episodes"):
        Record(str(tmp_path), every)


@pytest.mark.parametrize(("given", "says"), [({"foldr": "x"}, "did you mean 'folder'"), ({"every": 2}, "which folder")])
def test_what_is_said_of_it_wrongly_is_answered(given, says):
    with pytest.raises(ValueError, match=says):
        callbacks_for(load_task("chop_tree"), record=given)
