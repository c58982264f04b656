"""The request to stop, as signals bring it."""

from __future__ import annotations

import os
import signal

import pytest

from minestudio_jax.run import stop_signal
from minestudio_jax.run.stop_signal import StopSignal


@pytest.fixture
def stop():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = StopSignal()
    stop.install()
    yield stop
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_signal_that_comes_twice_at_once_is_one_request(stop):
    """So does timeout(1) send it, to the process and to its group."""
    assert not stop.event.is_set()
    send(signal.SIGINT, signal.SIGINT)
    assert (stop.event.is_set(), stop.name) == (True, "SIGINT")
    send(signal.SIGTERM)
    assert stop.name == "SIGINT"


@pytest.mark.parametrize("between", [(), (signal.SIGTERM,)])
def test_another_interrupt_later_does_not_wait_for_the_orderly_stop(stop, monkeypatch, between):
    monkeypatch.setattr(stop_signal, "_ONE_STOP_S", 0.0)
    send(signal.SIGINT, *between)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_signal_of_each_kind_is_no_impatience(stop, monkeypatch):
    monkeypatch.setattr(stop_signal, "_ONE_STOP_S", 0.0)
    send(signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    assert stop.name == "SIGTERM"
