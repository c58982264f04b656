"""Ray's process on this machine, played by one that is killed; a run that loses the real one is in test_training_run."""

from __future__ import annotations

import threading

import pytest

from minestudio_jax.run import ray_watch
from minestudio_jax.run.ray_watch import RayWatch
from tests.rollout.processes import sleeper


class Losses:
    """Keeps the sentences that it is called with."""

    def __init__(self):
        self.sentences, self.there = [], threading.Event()

    def __call__(self, sentence):
        self.sentences.append(sentence)
        self.there.set()


@pytest.fixture
def raylet(monkeypatch):
    process = sleeper()
    monkeypatch.setattr(ray_watch, "_raylet_pid", lambda: process.pid)
    yield process
    process.kill()
    process.wait()


def test_the_end_of_the_raylet_is_told_once_and_at_once(raylet):
    losses = Losses()
    watch = RayWatch(losses)
    assert not watch.is_gone(0.1)
    raylet.kill()
    assert watch.is_gone(10.0)
    assert losses.there.wait(10.0)
    watch.close()
    assert len(losses.sentences) == 1
    assert f"its raylet, process {raylet.pid}, has ended" in losses.sentences[0]


def test_an_end_after_the_watch_is_nobodys_business(raylet):
    losses = Losses()
    watch = RayWatch(losses)
    watch.close()
    raylet.kill()
    assert not watch.is_gone(0.1)
    assert losses.sentences == []


def test_a_raylet_that_cannot_be_seen_is_not_watched(monkeypatch, caplog):
    monkeypatch.setattr(ray_watch, "_raylet_pid", lambda: 0)
    losses = Losses()
    with caplog.at_level("INFO", "minestudio_jax"):
        watch = RayWatch(losses)
        assert not watch.is_gone(0.1)
        watch.close()
    assert "process 0, is not watched" in caplog.text
    assert losses.sentences == []


def test_a_raylet_that_does_not_answer_is_none(monkeypatch, tmp_path):
    class Context:
        def get_node_id(self):
            return "here"

    nodes = [{"NodeID": "there", "RayletSocketName": "?"}, {"NodeID": "here", "RayletSocketName": str(tmp_path / "no")}]
    monkeypatch.setattr(ray_watch.ray, "get_runtime_context", Context)
    for known in (nodes, nodes[:1]):
        monkeypatch.setattr(ray_watch.ray, "nodes", lambda known=known: known)
        assert ray_watch._raylet_pid() == 0
