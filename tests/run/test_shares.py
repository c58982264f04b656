"""What a host reads of an iteration, without Ray: actors that answer with what Ray would raise."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import ray
import ray.exceptions

from minestudio_jax.run.host_messages import Fetch, HaveRead, Read
from minestudio_jax.run.shares import following_source


class OneRequest:
    """A conversation in which the first host asks once."""

    def __init__(self, request):
        self.heard, self.said = [Fetch(request), None], []

    def hear(self, kind, host, timeout_s):
        return self.heard.pop(0)

    def say(self, message):
        self.said.append(message)


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.OutOfMemoryError("ended by the memory monitor"),
        ray.exceptions.RuntimeEnvSetupError("no agent"),
        ray.exceptions.ActorUnschedulableError("no such node"),
        ray.exceptions.GetTimeoutError("late"),
        LookupError("it was released"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_fragments_whose_buffer_is_gone_are_told_as_lost(monkeypatch, error):
    def get(calls, timeout):
        if calls == "entries":
            raise error
        return calls

    entries = SimpleNamespace(remote=lambda lease_id, ids: "entries")
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: SimpleNamespace(entries=entries))
    monkeypatch.setattr(ray, "get", get)
    key = (0, 0, 0, 0)
    conversation = OneRequest(Read(3, [("buffer", "lease", key)], [0], []))
    assert following_source(conversation, threading.Event())(1.0, 0) is None
    assert conversation.said == [HaveRead(3, [key])]
