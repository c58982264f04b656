"""One worker's lives: what a new one begins with, and when. No Ray: the actor is a stand-in."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from minestudio_jax.config import Config
from minestudio_jax.rollout import fleet_member
from minestudio_jax.rollout.fleet_member import FleetMember
from minestudio_jax.rollout.fragment_sender import SenderCounters
from minestudio_jax.rollout.rollout_actor import ActorReport
from minestudio_jax.rollout.rollout_worker import WorkerReport


class Actor:
    """Notes what it is called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: self.calls.append((name, *arguments)) or name)


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(fleet_member, "time", clock)
    return clock


def member_that_acts(actor):
    member = FleetMember(3, None, threading.Lock())
    member.start(lambda: actor)
    member.is_there("acting")
    return member


def report(abandoned, store_full, rests=True, still_s=0.0):
    worker = WorkerReport(env_failures={"death": 2, "hang": 1}, version=7)
    return ActorReport("acting", None, worker, rests, still_s, SenderCounters(abandoned, store_full))


def test_a_new_life_begins_without_what_the_last_one_said_and_what_was_delivered_is_summed_up():
    member = member_that_acts(Actor())
    member.note(report(1, 20))
    member.note(report(3, 40))  # the second report of the same life: its counters go on
    assert (member.version, member.env_failures, member.rests) == (7, 6, True)
    member.die("of cold")
    assert (member.state, member.life, member.status.last_error) == ("dead", 1, "of cold")
    member.start(Actor)
    member.is_there("acting")
    assert (member.version, member.env_failures, member.rests) == (-1, 0, False), "it has done nothing yet"
    assert member.sender_total == SenderCounters(3, 40)
    member.note(report(5, 6, rests=False))
    member.die("of heat")
    member.start(Actor)
    assert member.sender_total == SenderCounters(8, 46)


def test_a_new_life_is_told_again():
    first, second = Actor(), Actor()
    member = member_that_acts(first)
    member.tell(4, "a")
    member.permit(2, 4, 8)
    member.die("of cold")
    member.start(lambda: second)
    member.is_there("acting")
    member.tell(4, "a")
    member.permit(2, 4, 8)
    assert second.calls == first.calls == [("load_policy", 4, "a"), ("permit", 4, 8)]


def test_who_dies_again_soon_waits_twice_as_long_and_who_lived_a_while_does_not(now):
    member, waits = FleetMember(0, None, threading.Lock()), []
    for lived_s in [1.0] * 9 + [61.0, 1.0]:
        member.start(Actor)
        now.now += lived_s
        member.is_there("acting")
        member.die("again")
        waits.append(member.restart_at - now.now)
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 0.5, 1]


def test_a_version_and_a_permission_are_told_once_and_to_one_that_can_take_them(monkeypatch):
    answered = [False]
    monkeypatch.setattr(fleet_member.ray, "wait", lambda calls, timeout: (calls, []) if answered[0] else ([], calls))
    actor = Actor()
    member = FleetMember(0, None, threading.Lock())
    member.start(lambda: actor)
    member.tell(1, "a")
    member.permit(1, 1, 8)
    assert actor.calls == [], "its process may never be there"
    member.is_there("starting")
    member.tell(1, "a")
    member.permit(1, 1, 8)
    assert actor.calls == [("load_policy", 1, "a")], "it loads beside the start, but has nothing to act with yet"
    member.is_there("acting")
    member.tell(2, "b")
    assert len(actor.calls) == 1, "it has still to answer for the last one"
    answered[0] = True
    for _ in range(2):
        member.tell(2, "b")
        member.permit(1, 1, 8)
    member.tell(1, "a")
    assert actor.calls[1:] == [("load_policy", 2, "b"), ("permit", 1, 8)]


def test_one_that_drains_stays_so_whatever_it_reports():
    actor = Actor()
    member = member_that_acts(actor)
    member.begin_to_drain(30.0)
    member.is_there("acting")
    assert member.state == "draining"
    assert actor.calls == [("drain", 30.0)]


def test_who_is_asked_and_does_not_answer_is_overdue_by_the_setting_that_says_so(now, monkeypatch):
    monkeypatch.setattr(fleet_member, "room", lambda rollout, number: "asking for a CPU")
    config, actor = Config(), Actor()
    member = FleetMember(0, None, threading.Lock())
    member.start(lambda: actor)
    assert member.overdue(config) == "", "nobody has asked"
    member.ask()
    member.ask()
    assert actor.calls == [("report",)]
    now.now += config.run.start_deadline_s
    assert member.overdue(config) == ""
    now.now += 1.0
    assert "run.start_deadline_s" in member.overdue(config)
    member.is_there("acting")
    assert "rollout.report_deadline_s" in member.overdue(config)
    member.call = None  # the answer has been taken
    assert member.overdue(config) == ""


def test_who_reports_and_does_not_go_on_is_overdue_too(now):
    """D-37: the thread that acts may hang where the others answer."""
    config, member = Config(), member_that_acts(Actor())
    member.note(report(0, 0, still_s=config.rollout.report_deadline_s))
    assert member.overdue(config) == ""
    member.note(report(0, 0, still_s=config.rollout.report_deadline_s + 1.0))
    assert "has stood still for 61 s" in member.overdue(config)
    assert "rollout.report_deadline_s" in member.overdue(config)
    member.die("of standing still")
    member.start(Actor)
    assert member.overdue(config) == ""
