"""What hosts say to one another, without the rest of a run."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import Pipe, get_context

import pytest

from minestudio_jax.run import conversation
from minestudio_jax.run.conversation import Conversation, HostFailure
from minestudio_jax.run.host_messages import Beat, Bye, Farewell, Go, Introduction, Publish, StopWanted
from tests.rollout.processes import wait_until


@pytest.fixture
def line():
    """A conversation with host 1, the other end of its connection, and what it has heard of stopping."""
    here, there = Pipe()
    wishes: list[str] = []
    peer = Introduction(1, "machine", 42, "m", {}, {})
    talk = Conversation({1: (peer, here)}, wishes.append, lambda: "", end_deadline_s=3600.0)
    yield talk, there, wishes
    talk.close()
    there.close()


def test_messages_of_each_kind_come_in_order_and_waiting_ends_in_time(line):
    talk, there, _ = line
    assert talk.hear(Go, 1, 0.01) is None
    for message in (Go(Publish()), Beat(), Bye(), Go(Publish())):
        there.send(message)
    assert talk.wait_for_byes(30.0)
    assert [talk.hear(Go, 1, 30.0) for _ in range(2)] == [Go(Publish())] * 2
    assert talk.hear(Go, 1, 0.0) is None


def test_a_broken_connection_ends_every_wait_and_names_the_host(line):
    talk, there, _ = line
    errors = []

    def wait():
        with pytest.raises(HostFailure) as raised:
            talk.hear(Go, 1, 300.0)
        errors.append(raised.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    there.close()
    waiting.join(30.0)
    assert str(errors[0]).startswith("host 1 (machine, process 42) is gone")
    assert errors[0].code == 1
    assert talk.explanation(0.0) is errors[0]


def test_a_farewell_carries_reason_and_exit_code(line):
    talk, there, _ = line
    there.send(Farewell("no Ray", 2))
    with pytest.raises(HostFailure, match=r"host 1 .* ended the run: no Ray") as raised:
        talk.hear(Go, 1, 30.0)
    assert raised.value.code == 2


def test_a_host_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(conversation, "_BEAT_S", 0.01)
    monkeypatch.setattr(conversation, "SILENCE_S", 0.0)
    here, there = Pipe()
    talk = Conversation({1: (Introduction(1, "machine", 42, "m", {}, {}), here)}, print, lambda: "", 3600.0)
    with pytest.raises(HostFailure, match="has not been heard of"):
        talk.hear(Go, 1, 30.0)
    talk.close()
    there.close()


def test_a_host_that_is_frozen_is_given_up_though_its_connection_stands(monkeypatch):
    """D-39: a machine that swaps, or a virtual one that is suspended, would hold up all others for ever."""
    here, there = Pipe()
    host = get_context("spawn").Process(target=talk_to_host_0, args=(there, 0.05), daemon=True)
    host.start()
    try:
        assert isinstance(here.recv(), Beat)  # it has started
        monkeypatch.setattr(conversation, "_BEAT_S", 0.05)
        monkeypatch.setattr(conversation, "SILENCE_S", 1.5)
        talk = Conversation({1: (Introduction(1, "machine", 42, "m", {}, {}), here)}, print, lambda: "", 3600.0)
        assert talk.hear(Go, 1, 2.0) is None, "while it lives it is waited for"
        os.kill(host.pid, signal.SIGSTOP)
        with pytest.raises(HostFailure, match=r"has not been heard of for 1\.5 s"):
            talk.hear(Go, 1, 60.0)
        talk.close()
    finally:
        host.kill()
        host.join()


def talk_to_host_0(connection, beat_s):
    """What a host does that has nothing to say."""
    conversation._BEAT_S = beat_s
    Conversation({0: (Introduction(0, "machine", 41, "m", {}, {}), connection)}, print, lambda: "", 3600.0)
    threading.Event().wait()


def test_the_wish_to_stop_reaches_the_other_side(line):
    _, there, wishes = line
    there.send(StopWanted("SIGTERM"))
    assert wait_until(lambda: wishes == ["SIGTERM at host 1 (machine, process 42)"], 30.0)


def test_who_was_told_to_stop_says_so_once(monkeypatch):
    monkeypatch.setattr(conversation, "_BEAT_S", 0.01)
    here, there = Pipe()
    talk = Conversation({0: (Introduction(0, "machine", 42, "m", {}, {}), here)}, print, lambda: "SIGINT", 3600.0)
    heard = [there.recv() for _ in range(4)]
    assert heard.count(StopWanted("SIGINT")) == 1
    assert heard.count(Beat()) == 3
    talk.close()
    there.close()
