"""The manager with real Ray: what dies or hangs is replaced, workers come and go, and no fragment is unaccounted for."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from pathlib import Path

import jax
import psutil
import pytest
import ray
import ray.exceptions
from ray.util.placement_group import placement_group_table

from minestudio_jax.config import Config, EnvConfig, PolicyConfig, ReplayConfig, RolloutConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout import fragment_sender, rollout_actor, rollout_manager
from minestudio_jax.rollout.env_worker import EnvLaunch
from minestudio_jax.rollout.fragment_sender import FragmentSender, Outbox
from minestudio_jax.rollout.instance_log import InstanceLog
from minestudio_jax.rollout.process_pool import ProcessEnvPool
from minestudio_jax.rollout.replay_buffer_actor import MAX_CALLS, ReplayBufferActor
from minestudio_jax.rollout.replay_service import NAMESPACE
from minestudio_jax.rollout.rollout_manager import RolloutFailure, RolloutManager
from minestudio_jax.run import ray_cluster
from minestudio_jax.utils import policy_store
from tests.in_process_pool import SPEC, InProcessPool
from tests.rollout.pools import play
from tests.rollout.processes import is_alive, marked_pids, wait_until
from tests.trainer.fragments import make_fragments, tiny_policy

LENGTH = 8
CONFIG = Config(
    env=EnvConfig(factory="tests.scripted_env:make", options={"step_s": 0.01, "episode_length": 5}),
    policy=PolicyConfig(channels=(4,), hidden_size=8),
    rollout=RolloutConfig(
        num_envs=2, inference_batch_size=2, fragment_length=LENGTH, report_deadline_s=5.0, drain_deadline_s=20.0
    ),
    # As much as workers play in some seconds: on a busy machine a test may come that late for what it waits for.
    replay=ReplayConfig(max_chunks=64, max_staleness=100, when_full="drop_oldest", max_restarts=3),
)
VERSION_SPEC = EnvironmentSpec({"image": ArraySpec((4, 4, 3), "uint8")}, {"choice": 4})


def processes(name):
    """pid of every living Ray actor of that class below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(f"ray::{name}" in word for word in process.cmdline()) and is_alive(process.pid):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def _ray():
    ray_cluster.start_ray(
        dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, num_rollout_workers=3))
    )
    yield
    ray_cluster.stop_ray()


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    params = jax.jit(make_policy(CONFIG, VERSION_SPEC).init)(jax.random.key(0))
    return policy_store.save_version(tmp_path_factory.mktemp("versions"), 1, params)


@pytest.fixture(scope="module")
def manager(tmp_path_factory, version):
    """One worker that plays, and a run that was told nothing."""
    manager = RolloutManager(CONFIG, "s", tmp_path_factory.mktemp("logs"), threading.Event())
    assert manager.wait_until_started() == VERSION_SPEC
    manager.watch(lambda worker_id, report: None)
    manager.publish(1, version)
    yield manager
    manager.close(20.0)
    assert wait_until(lambda: not processes("RolloutActor") and not processes("ReplayBufferActor"), 20)


@pytest.fixture(autouse=True)
def _counters_balance(request, caplog):
    caplog.set_level(logging.INFO, "minestudio_jax")  # a test that fails shall tell what happened
    yield
    if "manager" in request.fixturenames:
        assert request.getfixturevalue("manager").replay_counters.balanced


def states(manager):
    return [w.state for w in manager.status().workers]


def places():
    """What Ray holds for workers."""
    return {name for name, group in placement_group_table().items() if group["state"] == "CREATED"}


def fetch(manager, number=4, timeout_s=60.0):
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        fragments = manager.fetch(number, 0.5, lambda: 0)
        if fragments is not None:
            return fragments
    raise AssertionError(manager.status())


@pytest.fixture
def for_want_of_memory(request, monkeypatch):
    """Whether Ray tells of dead actors as of those that its memory monitor ended: by an exception of another kind."""
    if request.param:
        get = ray.get

        def told_otherwise(*args, **settings):
            try:
                return get(*args, **settings)
            except ray.exceptions.ActorDiedError as error:
                raise ray.exceptions.OutOfMemoryError(str(error)) from None

        monkeypatch.setattr(ray, "get", told_otherwise)
    return request.param


either_way = pytest.mark.parametrize("for_want_of_memory", [False, True], indirect=True)


def test_fragments_come_with_their_size_and_are_released(manager):
    fragments = fetch(manager)
    assert len(fragments) == 4
    for fragment in fragments:
        assert fragment.metadata.session_id == "s"
        assert fragment.metadata.num_bytes == fragment.sized().metadata.num_bytes > (LENGTH + 1) * 48
    assert wait_until(lambda: manager.replay_counters.trained >= 4)


def test_what_other_hosts_read_is_lent_until_all_have_theirs_and_what_is_lost_is_replaced(manager):
    before, rounds = manager.replay_counters.lost, []

    def entries(lent):
        buffer = ray.get_actor(lent[0].buffer, NAMESPACE)
        return [ray.get(buffer.entries.remote(one.lease_id, [one.entry.metadata.id]))[0] for one in lent]

    def read(lent):
        rounds.append(lent)
        found = entries(lent)
        assert [ray.get(entry.reference).metadata.id for entry in found] == [one.entry.metadata.id for one in lent]
        return [lent[0].entry.metadata.id] if len(rounds) == 1 else []

    while not manager.fetch_with_others(4, 30.0, lambda: 0, read):
        assert not rounds
    first, second = rounds
    assert second[:3] == first[1:]
    assert second[3].lease_id != first[0].lease_id
    with pytest.raises(LookupError, match="was released"):
        entries(second)
    assert wait_until(lambda: manager.replay_counters.lost == before + 1)


@either_way
def test_a_replay_buffer_that_dies_is_replaced_and_what_it_held_is_lost(manager, for_want_of_memory):
    assert wait_until(lambda: manager.replay_counters.held >= 8, 30), manager.status()
    before = manager.status()
    waiting = threading.Thread(target=fetch, args=(manager, 8))  # more than there may be
    (pid,) = processes("ReplayBufferActor")
    waiting.start()
    os.kill(pid, signal.SIGKILL)
    waiting.join(60)
    assert not waiting.is_alive()
    after = manager.status()
    assert after.replay_restarts == before.replay_restarts + 1
    assert after.replay.lost >= before.replay.lost + 1
    assert after.replay.inserted_steps >= before.replay.inserted_steps
    assert after.replay.balanced
    assert "died" in after.replay_error
    fetch(manager)
    assert states(manager) == ["acting"], "the worker is the same"
    assert manager.status().workers[0].life == 0


def test_a_replay_buffer_that_hangs_is_replaced(manager):
    (pid,) = processes("ReplayBufferActor")
    before = manager.status().replay_restarts
    os.kill(pid, signal.SIGSTOP)
    assert wait_until(lambda: manager.status().replay_restarts == before + 1, 30)
    assert "rollout.report_deadline_s=5" in manager.status().replay_error
    fetch(manager)
    assert wait_until(lambda: not is_alive(pid), 20)


def test_workers_are_added_and_the_youngest_is_drained(manager):
    """Every step that it played arrives, the last ones in fragments that are cut."""
    # Its two environments play in step, and one time in eight both are between two fragments when it is drained.
    assert any(a_cut_fragment_comes_of_a_drained_worker(manager) for _ in range(5))
    with pytest.raises(ValueError, match="at least 1"):
        manager.set_num_workers(0)


def a_cut_fragment_comes_of_a_drained_worker(manager):
    """Adds a worker and has it drained; whether the last fragment of one of its environments was cut."""
    assert "1 rollout workers are started besides the 1" in manager.set_num_workers(2)
    assert wait_until(lambda: states(manager) == ["acting", "acting"], 60), manager.status()
    pids = processes("RolloutActor")
    assert len(places()) == 2
    seen = []
    assert wait_until(
        lambda: seen.extend(f.metadata for f in fetch(manager)) or {m.worker_id for m in seen} == {0, 1}, 60
    )
    abandoned = manager.metrics()["rollout/abandoned_fragments"]
    lost = manager.replay_counters.lost
    manager.set_num_workers(1)
    assert wait_until(lambda: "draining" in states(manager), 10)
    wait_until(lambda: seen.extend(f.metadata for f in fetch(manager)) or states(manager) == ["acting"], 30)
    assert states(manager) == ["acting"]

    def open_at_the_end():
        return any(m.worker_id == 1 and m.valid_steps < LENGTH for m in seen)

    # The last fragments lie behind all that the buffer held.
    wait_until(lambda: seen.extend(f.metadata for f in fetch(manager)) or open_at_the_end(), 10)
    assert manager.replay_counters.lost == lost, "it stays until what it delivered is in other hands"
    assert manager.metrics()["rollout/abandoned_fragments"] == abandoned
    assert wait_until(lambda: sum(map(is_alive, pids)) == 1, 20)
    assert len(places()) == 1
    return open_at_the_end()


def test_a_worker_that_cannot_be_placed_stalls_nothing(manager):
    sentence = manager.set_num_workers(9)
    assert "some wait for more" in sentence
    assert wait_until(lambda: states(manager).count("waiting") >= 6, 20)
    fetch(manager)
    fetch(manager)
    manager.set_num_workers(1)
    assert wait_until(lambda: states(manager) == ["acting"], 60), manager.status()
    assert wait_until(lambda: len(processes("RolloutActor")) == 1, 30)


@pytest.mark.parametrize(
    ("number", "for_want_of_memory"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGSTOP, False)],
    indirect=["for_want_of_memory"],
)
def test_a_worker_that_dies_or_hangs_is_replaced_with_the_newest_policy(manager, number, for_want_of_memory):
    (pid,) = processes("RolloutActor")
    life, place = manager.status().workers[0].life, places()
    os.kill(pid, number)
    assert wait_until(lambda: manager.status().workers[0].life == life + 1, 30)
    reason = manager.status().workers[0].last_error
    assert ("rollout.report_deadline_s=5" in reason) == (number == signal.SIGSTOP)
    assert wait_until(lambda: manager.status().workers[0].version == 1, 60)
    assert any(f.metadata.worker_life == life + 1 for _ in range(4) for f in fetch(manager))
    assert wait_until(lambda: not is_alive(pid), 20)
    assert places() == place, "nobody else gets its CPUs meanwhile"


def test_what_replaces_a_lost_fragment_need_not_be_as_fresh_when_the_learner_has_gone_on(manager, monkeypatch):
    """Or learner and workers would wait for each other, the one for newer fragments, the others for room."""
    asked, lease, read = [], manager._replay.lease, rollout_manager.read_fragments

    def all_lost(entries, *others):
        monkeypatch.setattr(rollout_manager, "read_fragments", read)
        return [], [entry.metadata.id for entry in entries]

    def noted(num_fragments, timeout_s, ahead):
        asked.append(ahead)
        return lease(num_fragments, timeout_s, ahead)

    monkeypatch.setattr(rollout_manager, "read_fragments", all_lost)
    monkeypatch.setattr(manager._replay, "lease", noted)
    ahead = iter((1, 0))
    assert len(manager.fetch(4, 60.0, lambda: next(ahead, 0))) == 4
    assert asked[:2] == [1, 0]


def test_a_worker_whose_environments_cannot_be_built_on_its_node_costs_only_itself(tmp_path, version):
    """D-39; if nobody else plays, the run fails at once."""
    options = {**CONFIG.env.options, "fault": "misconfigured", "fault_in": "start"}
    rollout = dataclasses.replace(CONFIG.rollout, num_envs=1, inference_batch_size=1, num_cpus_per_worker=0)

    def started(fault_index):
        env = dataclasses.replace(CONFIG.env, options={**options, "fault_index": fault_index})
        return RolloutManager(dataclasses.replace(CONFIG, env=env, rollout=rollout), "s", tmp_path, threading.Event())

    manager = started(fault_index=1)
    try:
        assert manager.wait_until_started() == VERSION_SPEC
        manager.publish(1, version)
        assert wait_until(lambda: states(manager) == ["acting"], 30)
        manager.set_num_workers(2)
        assert wait_until(lambda: len(states(manager)) == 2 and manager.status().workers[1].life >= 2, 60)
        assert "the scripted misconfiguration" in manager.status().workers[1].last_error
        assert manager.status().workers[0].state == "acting"
        assert len(fetch(manager)) == 4
    finally:
        manager.close(5.0)
    manager = started(fault_index=0)
    try:
        with pytest.raises(RolloutFailure, match="the scripted misconfiguration"):
            manager.wait_until_started()
    finally:
        manager.close(5.0)


def test_nothing_that_environments_started_survives_a_worker_that_is_killed_by_ray(tmp_path):
    """D-37."""

    @ray.remote(num_cpus=0)
    class Holder:
        def __init__(self):
            launch = EnvLaunch("tests.scripted_env:make", {"child": "session"})
            logs = [InstanceLog(tmp_path, 0, env_id, 2**20) for env_id in range(2)]
            self._pool = ProcessEnvPool(launch, logs, 0, max_failures_per_hour=0)
            play(self._pool, 1, 1)

        def marker(self):
            return self._pool.marker

    holder = Holder.remote()
    marker = ray.get(holder.marker.remote())
    assert len(marked_pids(marker)) == 4
    ray.kill(holder)
    assert wait_until(lambda: not marked_pids(marker), 10)


def test_the_buffer_is_not_replaced_for_ever(manager):
    """The last test of this manager: its run has failed."""
    with pytest.raises(RolloutFailure, match=r"4 of its deaths within an hour .* replay\.max_restarts=3"):
        for _ in range(4):
            before, (pid,) = manager.status().replay_restarts, processes("ReplayBufferActor")
            os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda n=before: manager.raise_error() or manager.status().replay_restarts > n, 30)
            fetch(manager)


def test_a_run_begins_with_its_first_environment_and_what_dies_before_is_replaced(tmp_path, version):
    """Worker 0 would keep everybody for env.start_deadline_s; nothing that was reported before `watch` is forgotten."""
    config = dataclasses.replace(
        CONFIG,
        env=dataclasses.replace(CONFIG.env, options={**CONFIG.env.options, "fault": "hang", "fault_in": "start"}),
        rollout=dataclasses.replace(CONFIG.rollout, num_rollout_workers=2, num_envs=1, inference_batch_size=1),
    )
    others, reports = set(processes("RolloutActor")), []
    manager = RolloutManager(config, "s", tmp_path, threading.Event())
    try:
        assert wait_until(lambda: len(processes("RolloutActor")) == len(others) + 2, 60)
        os.kill(min(set(processes("RolloutActor")) - others), signal.SIGKILL)
        assert manager.wait_until_started() == VERSION_SPEC
        assert wait_until(lambda: manager.metrics()["rollout/worker_restarts"] == 1, 30)
        assert wait_until(lambda: states(manager) == ["starting", "acting"], 60), states(manager)
        manager.watch(lambda worker_id, report: reports.append((worker_id, report.env_starts)))
        manager.publish(1, version)
        assert len(fetch(manager)) == 4
        assert (1, 1) in reports
    finally:
        manager.close(2.0)
    assert wait_until(lambda: set(processes("RolloutActor")) <= others, 20)


def test_what_was_lost_is_played_again_though_workers_wait_for_permission(tmp_path, version, monkeypatch):
    """But nothing ahead of time: they rest while the learner learns."""
    monkeypatch.setattr(rollout_manager, "_STARVED_AFTER_S", 1.0)
    rollout = dataclasses.replace(CONFIG.rollout, synchronous=True, num_cpus_per_worker=0)
    others = set(processes("ReplayBufferActor"))
    manager = RolloutManager(dataclasses.replace(CONFIG, rollout=rollout), "s", tmp_path, threading.Event())
    try:
        assert manager.wait_until_started() == VERSION_SPEC
        manager.publish(1, version)
        manager.permit(4)
        assert wait_until(lambda: manager.replay_counters.held == 4, 60), manager.status()
        (pid,) = set(processes("ReplayBufferActor")) - others
        os.kill(pid, signal.SIGKILL)
        assert len(fetch(manager)) == 4
        assert manager.replay_counters.lost == 4
        assert manager.fetch(4, 4.0, lambda: 1) is None
    finally:
        manager.close(5.0)


def test_a_worker_that_is_still_loading_gets_only_the_newest_version_afterwards(monkeypatch, tmp_path):
    """And telling it does not wait."""
    loaded, slow = [], threading.Event()

    def load(source, abstract, memory):
        loaded.append(int(source.name))
        slow.wait(10)
        return params

    config = dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, fragment_length=10**6))
    params = jax.jit(make_policy(config, SPEC).init)(jax.random.key(0))
    monkeypatch.setattr(rollout_actor, "make_pool", lambda *_: InProcessPool(2))
    monkeypatch.setattr(policy_store, "load_version", load)
    actor = rollout_actor.RolloutActor(config, 0, 0, "s", tmp_path, None)
    assert wait_until(lambda: actor.report().spec == SPEC)
    actor.load_policy(1, Path(str(1)))
    assert wait_until(lambda: loaded == [1])
    began = time.monotonic()
    for version in (2, 3, 5, 4):
        actor.load_policy(version, Path(str(version)))
    assert time.monotonic() - began < 0.1
    slow.set()
    assert wait_until(lambda: actor.report().worker.version == 5)
    assert loaded == [1, 5]
    actor.load_policy(3, Path(str(3)))
    actor.stop()
    assert loaded == [1, 5]


class _Stuck(InProcessPool):
    """Hangs, as a pool does whose run directory lies on a file server that is gone."""

    def recv(self, *arguments):
        self.stuck.wait(60)
        return super().recv(*arguments)


def test_a_thread_that_hangs_is_told_of_by_the_others(monkeypatch, tmp_path):
    """D-37."""
    pool, params = _Stuck(2), jax.jit(make_policy(CONFIG, SPEC).init)(jax.random.key(0))
    monkeypatch.setattr(policy_store, "load_version", lambda source, abstract, memory: params)
    pool.stuck = threading.Event()
    monkeypatch.setattr(rollout_actor, "make_pool", lambda *_: pool)
    actor = rollout_actor.RolloutActor(CONFIG, 0, 0, "s", tmp_path, None)
    assert wait_until(lambda: actor.report().state == "acting")
    time.sleep(0.5)
    assert actor.report().still_s < 0.4, "it waits for a policy, and goes on waiting"
    actor.load_policy(1, Path("1"))
    assert wait_until(lambda: actor.report().still_s > 1.0, 30)
    pool.stuck.set()
    actor.stop()


def test_a_worker_that_cannot_even_begin_says_why(monkeypatch, tmp_path):
    """D-38."""

    def refuse(number):
        raise PermissionError("these CPUs are not yours")

    monkeypatch.setattr(rollout_actor, "CpuPinning", refuse)
    actor = rollout_actor.RolloutActor(CONFIG, 0, 0, "s", tmp_path, None)
    with pytest.raises(PermissionError, match="not yours"):
        wait_until(lambda: actor.report() is None)
    actor.stop()


def test_what_a_worker_warns_of_is_in_its_reports(monkeypatch, tmp_path):
    """D-38: of an environment that broke, the cause, which Ray would leave in a file of its own."""
    monkeypatch.setattr(rollout_actor, "make_pool", lambda *_: InProcessPool(2))
    actor = rollout_actor.RolloutActor(CONFIG, 0, 0, "s", tmp_path, None)
    logging.getLogger("minestudio_jax.rollout.process_pool").warning("%s broke", "environment 3")
    assert actor.report().warnings == ["environment 3 broke"]
    assert actor.report().warnings == []
    actor.stop()
    logging.getLogger("minestudio_jax").warning("nobody's")
    assert actor.report().warnings == []


@pytest.fixture(scope="module")
def fragments():
    policy = tiny_policy()
    return make_fragments(policy, policy.init(jax.random.key(0)), 6)


def remote_buffer(**settings):
    config = ReplayConfig(**{"max_chunks": 8, "fragments_per_chunk": 2, **settings})
    actor = ray.remote(ReplayBufferActor).options(num_cpus=0, max_concurrency=MAX_CALLS).remote(config, LENGTH, 0)
    ray.get(actor.set_version.remote("s", 1))
    return actor


@either_way
def test_what_a_dead_buffer_had_not_confirmed_goes_to_the_next_one_in_order(fragments, for_want_of_memory):
    """D-55."""
    first = remote_buffer(max_chunks=1)
    sender = FragmentSender(first, 9, lambda: False)
    for fragment in fragments:
        sender.store(fragment)
        sender.tell()
    # Two are in, the others wait for room.
    assert wait_until(lambda: ray.get(first.status.remote()).counters.inserted == 2), ray.get(first.status.remote())
    sender._settle(0.5)
    ray.kill(first)
    second = remote_buffer()
    flushed = threading.Thread(target=sender.flush)
    flushed.start()
    time.sleep(0.7)
    assert flushed.is_alive(), "there is nobody to deliver to"
    sender.set_buffer(second, 1)
    flushed.join(20)
    assert not flushed.is_alive()
    counters = ray.get(second.status.remote()).counters
    assert (counters.inserted, counters.dropped, counters.held) == (4, 0, 4), "no gap within a chunk"
    assert sender.counters.abandoned == 0
    ray.kill(second)


def test_what_is_there_together_is_told_together_and_again_as_far_as_there_was_no_room(fragments):
    buffer = remote_buffer(max_chunks=1)
    sender = FragmentSender(buffer, 9, lambda: False)
    for fragment in fragments:
        sender.store(fragment)
    sender.tell()
    assert len({delivery.call for delivery in sender._under_way}) == 1
    flushed = threading.Thread(target=sender.flush)
    flushed.start()
    taken = []
    while len(taken) < 4:  # two at a time: a chunk is all there is room for
        lease, _ = ray.get(buffer.lease.remote(2, 20.0, 0))
        taken += [entry.metadata.id for entry in lease.entries]
        ray.get(buffer.release.remote(lease.id))
    flushed.join(20)
    assert not flushed.is_alive()
    assert taken == [fragment.metadata.id for fragment in fragments[:4]]
    counters = ray.get(buffer.status.remote()).counters
    assert (counters.inserted, counters.duplicates, counters.over_limit) == (6, 0, 0)
    ray.kill(buffer)


def test_an_outbox_tells_when_nothing_more_is_at_hand():
    events, may_store = [], threading.Semaphore(0)

    class Sender:
        def store(self, fragment):
            assert may_store.acquire(timeout=10)
            events.append(fragment)

        def tell(self):
            events.append("told")

        def flush(self):
            events.append("flushed")

    outbox = Outbox(Sender(), lambda error: events.append(error))
    for fragment in ("a", "b", "c"):  # there is room for one, behind the one that is being stored
        assert outbox.offer(fragment, 10)
        if fragment != "a":
            may_store.release()
    may_store.release()
    assert wait_until(lambda: events == ["a", "b", "c", "told"], 10), events
    may_store.release()
    assert outbox.offer("d", 10)
    outbox.close()
    assert events[4] == "d"
    assert events[-1] == "flushed"


def test_a_worker_that_must_end_abandons_what_nobody_takes(fragments):
    buffer = remote_buffer(max_chunks=1)
    must_end = threading.Event()
    sender = FragmentSender(buffer, 9, must_end.is_set)
    for fragment in fragments[:4]:
        sender.store(fragment)
        sender.tell()
    # What the buffer has taken and has not answered for is abandoned, too, as far as the sender knows.
    assert wait_until(lambda: sender.attend() or len(sender._under_way) == 2)
    assert ray.get(buffer.status.remote()).counters.inserted == 2
    must_end.set()
    sender.flush()
    assert sender.counters.abandoned == 2
    ray.kill(buffer)


def test_a_full_object_store_makes_the_worker_wait_and_say_so(fragments, monkeypatch, caplog):
    buffer, attempts = remote_buffer(), []
    put = ray.put

    def full(value):
        attempts.append(time.monotonic())
        if len(attempts) <= 4:
            raise ray.exceptions.ObjectStoreFullError("no room")
        return put(value)

    monkeypatch.setattr(fragment_sender, "_SAY_FULL_AFTER_S", 0.1)
    monkeypatch.setattr(ray, "put", full)
    sender = FragmentSender(buffer, 9, lambda: False)
    sender.store(fragments[0])
    sender.flush()
    assert sender.counters.store_full == 4
    assert ray.get(buffer.status.remote()).counters.inserted == 1
    (warning,) = [r.getMessage() for r in caplog.records if r.name == fragment_sender.__name__]
    assert "run.object_store_gib" in warning
    monkeypatch.setattr(ray, "put", lambda value: full(attempts.clear()))
    ending = FragmentSender(buffer, 9, lambda: True)
    ending.store(fragments[1])
    assert ending.counters.abandoned == 1
    ray.kill(buffer)
