"""Admission, staleness, reuse, leases, limits and the balance of the replay buffer."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest

from minestudio_jax.config import ReplayConfig
from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.rollout.replay_buffer import ReplayBuffer
from minestudio_jax.rollout.replay_buffer_actor import ReplayBufferActor
from minestudio_jax.rollout.replay_chunk import Entry
from minestudio_jax.rollout.replay_counters import ReplayCounters

LENGTH = 4
BYTES = 2**20


def entry(index, version=1, env=0, session="s", name=None, steps=LENGTH):
    metadata = FragmentMetadata(0, 0, env, index, index * LENGTH, steps, session, version, version, "task", BYTES)
    return Entry(name or f"{env}/{index}", metadata)


class CheckedBuffer(ReplayBuffer):
    """Counts everything anew after whatever is done to it."""

    def set_version(self, session_id, version):
        super().set_version(session_id, version)
        self.check()

    def add(self, entry):
        new = super().add(entry)
        self.check()
        return new

    def lease(self, num_fragments, ahead=0):
        lease = super().lease(num_fragments, ahead)
        self.check()
        return lease

    def release(self, lease_id, lost=(), unused=()):
        known = super().release(lease_id, lost, unused)
        self.check()
        return known

    def lose(self, worker_id, worker_life):
        super().lose(worker_id, worker_life)
        self.check()

    def complete_no_more(self, worker_id, worker_life):
        super().complete_no_more(worker_id, worker_life)
        self.check()

    def take(self, num_fragments, ahead=0):
        """References of a lease that is given back at once; None if there is none."""
        lease = self.lease(num_fragments, ahead)
        if lease is None:
            return None
        assert self.release(lease.id)
        return [e.reference for e in lease.entries]


@pytest.fixture(autouse=True)
def _actors_use_a_checked_buffer(monkeypatch):
    monkeypatch.setattr("minestudio_jax.rollout.replay_buffer_actor.ReplayBuffer", CheckedBuffer)


def make(version=1, seed=0, **settings):
    buffer = CheckedBuffer(ReplayConfig(**settings), LENGTH, seed)
    buffer.set_version("s", version)
    return buffer


def ids(entries):
    return [e.metadata.id for e in entries]


def test_fragments_come_oldest_first_and_only_when_there_are_enough():
    buffer = make(max_chunks=8, max_staleness=2)
    for i in range(3):
        buffer.add(entry(i))
    assert buffer.lease(4) is None
    assert buffer.producers() == {(0, 0)}
    assert buffer.take(2) == ["0/0", "0/1"]
    assert buffer.ready() == 1
    assert buffer.take(1)
    assert buffer.producers() == set()


def test_a_fragment_is_used_max_reuse_times():
    buffer = make(max_chunks=8, max_reuse=2)
    buffer.add(entry(0))
    assert buffer.take(1)
    assert buffer.take(1)
    assert buffer.take(1) is None
    assert buffer.counters.trained == 1
    assert buffer.counters.sampled == 2


def test_stale_fragments_leave_even_behind_fresh_ones():
    """D-17."""
    buffer = make(max_chunks=8, max_staleness=1, version=5)
    buffer.add(entry(0, version=5))
    buffer.add(entry(0, version=4, env=1))
    buffer.set_version("s", 6)
    assert buffer.take(1) == ["0/0"]
    assert buffer.counters.expired == 1


def test_staleness_is_judged_by_the_version_that_will_train():
    buffer = make(max_chunks=8, max_staleness=2, version=5)
    buffer.add(entry(0, version=4))
    buffer.add(entry(0, version=5, env=1))
    assert [buffer.ready(ahead) for ahead in range(4)] == [2, 2, 1, 0]
    assert buffer.take(2, ahead=2) is None
    assert buffer.take(1, ahead=2) == ["1/0"]
    assert buffer.take(1, ahead=1) == ["0/0"]


def test_a_chunk_that_expires_counts_as_expired_as_a_whole():
    buffer = make(max_chunks=8, max_staleness=1, fragments_per_chunk=2, version=2)
    buffer.add(entry(0, version=1))
    buffer.add(entry(1, version=2))
    buffer.set_version("s", 3)
    assert (buffer.counters.expired, buffer.counters.held) == (2, 0)


def test_fragments_of_another_session_are_never_taken():
    buffer = make(max_chunks=8)
    buffer.add(entry(0, session="old"))
    assert buffer.ready() == 0
    assert buffer.counters.dropped == 1


def test_at_capacity_the_oldest_is_dropped():
    buffer = make(max_chunks=2, when_full="drop_oldest")
    for i in range(3):
        assert buffer.has_room()
        buffer.add(entry(i))
    assert buffer.take(2) == ["0/1", "0/2"]
    assert buffer.counters.dropped == 1


def test_the_byte_budget_is_a_capacity_too():
    """D-52."""
    buffer = make(max_chunks=99, max_gib=2.5 / 1024, when_full="drop_oldest")
    for i in range(3):
        buffer.add(entry(i))
        assert buffer.counters.held_bytes <= 2.5 * BYTES
    assert buffer.take(2) == ["0/1", "0/2"]
    waiting = make(max_chunks=99, max_gib=2.5 / 1024)
    for i in range(2):
        assert waiting.has_room(BYTES)
        waiting.add(entry(i))
    assert not waiting.has_room(BYTES)
    assert waiting.take(1)
    assert waiting.has_room(BYTES)


def test_a_budget_below_one_iteration_does_not_make_everybody_wait():
    buffer = make(max_chunks=99, max_gib=1.5 / 1024)
    buffer.add(entry(0))
    assert not buffer.has_room(BYTES)
    assert buffer.lease(2) is None
    assert buffer.has_room(BYTES)
    buffer.add(entry(1))
    assert buffer.counters.over_limit == 1
    assert buffer.take(2) == ["0/0", "0/1"]


def test_a_chunk_holds_consecutive_fragments_and_a_gap_begins_a_new_one():
    """D-15, D-28, D-55."""
    buffer = make(max_chunks=4, fragments_per_chunk=2)
    for e in (entry(0), entry(0, env=1), entry(2), entry(1, env=1), entry(3)):
        buffer.add(e)
    assert sorted(buffer.take(4)) == ["0/2", "0/3", "1/0", "1/1"]
    assert buffer.counters.dropped == 1


def test_of_a_worker_that_delivers_no_more_only_whole_chunks_are_waited_for():
    """Or one that is drained would stay until its last, incomplete chunk is too old."""
    buffer = make(fragments_per_chunk=2, max_chunks=8)
    for index in range(3):
        buffer.add(entry(index))
    buffer.complete_no_more(0, 1)
    assert (buffer.counters.held, buffer.producers()) == (3, {(0, 0)}), "another life"
    buffer.complete_no_more(0, 0)
    assert (buffer.counters.held, buffer.counters.dropped, buffer.producers()) == (2, 1, {(0, 0)})
    assert buffer.take(2) == ["0/0", "0/1"]
    assert buffer.producers() == set()


def test_a_fragment_that_comes_twice_is_inserted_once():
    """D-55: whoever does not know whether a call was heard may repeat it."""
    buffer = make(max_chunks=8, fragments_per_chunk=2)
    assert buffer.add(entry(0))
    assert not buffer.add(entry(0))
    assert buffer.add(entry(1))
    assert buffer.take(2) == ["0/0", "0/1"]
    assert not buffer.add(entry(1))
    assert (buffer.counters.inserted, buffer.counters.duplicates) == (2, 2)


def test_two_leases_never_share_a_fragment():
    """D-53."""
    buffer = make(max_chunks=8)
    for i in range(4):
        buffer.add(entry(i))
    first, second = buffer.lease(2), buffer.lease(2)
    assert first.id != second.id
    assert not set(ids(first.entries)) & set(ids(second.entries))
    assert buffer.lease(1) is None
    assert (buffer.counters.held, buffer.counters.trained) == (4, 0)
    assert buffer.release(second.id)
    assert (buffer.counters.held, buffer.counters.trained) == (2, 2)
    assert buffer.release(first.id)
    assert not buffer.release(first.id), "a lease is given back once"
    assert buffer.counters.trained == 4


def test_with_reuse_concurrent_leases_may_share_and_the_bound_holds():
    buffer = make(max_chunks=8, max_reuse=2)
    buffer.add(entry(0))
    first, second = buffer.lease(1), buffer.lease(1)
    assert ids(first.entries) == ids(second.entries)
    assert buffer.lease(1) is None
    assert buffer.release(first.id)
    assert buffer.counters.held == 1, "the other consumer still reads it"
    assert buffer.release(second.id)
    assert (buffer.counters.held, buffer.counters.trained) == (0, 1)


def test_others_find_the_entries_of_a_lease_by_their_fragments_until_it_is_released():
    buffer = make(max_chunks=12, fragments_per_chunk=2)
    for i in range(6):
        buffer.add(entry(i))
    lease = buffer.lease(4)
    wanted = [lease.entries[3], lease.entries[0]]
    assert buffer.entries(lease.id, ids(wanted)) == wanted, "in the order in which they were asked for"
    with pytest.raises(LookupError):
        buffer.entries(lease.id, ids([entry(5)]))
    buffer.release(lease.id)
    with pytest.raises(LookupError, match="was released"):
        buffer.entries(lease.id, ids(wanted))


def test_lost_fragments_are_dropped_at_the_release_and_counted():
    buffer = make(max_chunks=8, max_reuse=2)
    for i in range(3):
        buffer.add(entry(i))
    lease = buffer.lease(3)
    buffer.release(lease.id, lost=ids(lease.entries)[:1])
    assert (buffer.counters.dropped, buffer.counters.lost, buffer.counters.held) == (1, 1, 2)
    assert buffer.counters.sampled == 2
    assert buffer.take(2) == ["0/1", "0/2"]
    assert buffer.counters.trained == 2


def test_a_chunk_with_a_lost_fragment_is_not_lent_again():
    buffer = make(max_chunks=8, max_reuse=9, fragments_per_chunk=2)
    buffer.add(entry(0))
    buffer.add(entry(1))
    lease = buffer.lease(2)
    buffer.release(lease.id, lost=ids(lease.entries)[1:])
    assert (buffer.counters.trained, buffer.counters.lost, buffer.counters.held) == (1, 1, 0)


def test_what_a_dead_worker_delivered_leaves_at_once_and_what_still_comes_is_lost_too():
    buffer = make(max_chunks=8, fragments_per_chunk=2)
    for i in range(5):
        buffer.add(entry(i))
    lease = buffer.lease(2)
    other = FragmentMetadata(0, 1, 0, 0, 0, LENGTH, "s", 1, 1, "task", BYTES)
    buffer.add(Entry("of its next life", other))
    buffer.lose(0, 0)
    counters = buffer.counters
    assert (counters.lost, counters.held) == (3, 3), "a complete chunk and half a one are gone; another is lent"
    buffer.add(entry(5))
    assert (counters.inserted, counters.lost, counters.held) == (7, 4, 3)
    buffer.release(lease.id, lost=ids(lease.entries)[1:])
    assert (counters.trained, counters.lost, counters.held) == (1, 5, 1), "what was read in time has been trained on"
    buffer.set_version("another session", 1)
    buffer.add(entry(0, session="another session"))
    assert buffer.counters.held == 1


def test_what_a_consumer_did_not_need_is_lent_again_in_whole_chunks():
    buffer = make(max_chunks=8, fragments_per_chunk=2)
    for i in range(4):
        buffer.add(entry(i))
    lease = buffer.lease(4)
    buffer.release(lease.id, unused=ids(lease.entries)[1:])
    assert (buffer.counters.trained, buffer.counters.dropped, buffer.counters.held) == (1, 1, 2)
    assert buffer.counters.sampled == 1
    assert buffer.take(2) == ["0/2", "0/3"]


def test_a_lease_outlives_the_expiry_of_its_fragments_but_not_the_session():
    buffer = make(max_chunks=8, max_staleness=0)
    buffer.add(entry(0))
    buffer.add(entry(1))
    lease = buffer.lease(1)
    buffer.set_version("s", 2)
    assert (buffer.counters.held, buffer.counters.expired) == (1, 1)
    assert buffer.entries(lease.id, ids(lease.entries)) == list(lease.entries)
    buffer.release(lease.id)
    assert buffer.counters.trained == 1
    buffer.add(entry(2, version=2))
    lease = buffer.lease(1)
    buffer.set_version("t", 3)
    assert not buffer.release(lease.id)
    assert (buffer.counters.held, buffer.counters.dropped) == (0, 1)


def run_lengths(leased):
    """Fragments in a row of one environment, as the learner will find them."""
    ordered = sorted((e.metadata for e in leased), key=lambda m: (m.source, m.start_step))
    lengths = [1]
    for a, b in pairwise(ordered):
        lengths = [*lengths[:-1], lengths[-1] + 1] if a.continued_by(b, LENGTH) else [*lengths, 1]
    return sorted(lengths)


def test_sampling_in_runs_takes_what_one_environment_played_in_a_row():
    """D-28: advantages run over all of it."""
    lengths = {}
    for sampling in ("fifo", "uniform", "runs"):
        buffer = make(max_chunks=32, sampling=sampling, max_staleness=9)
        for i in range(4):
            for env in range(8):
                buffer.add(entry(i, env=env, steps=2 if (env, i) == (1, 1) else LENGTH))
        lengths[sampling] = run_lengths(buffer.lease(16).entries)
    assert lengths["runs"] == [2, 2, 4, 4, 4], "the fragment that a failure cut ends its run"
    assert lengths["fifo"] == [2] * 8
    assert sum(lengths["uniform"]) / len(lengths["uniform"]) < 3


def test_sampling_in_runs_begins_with_the_oldest():
    buffer = make(max_chunks=8, sampling="runs", max_reuse=2)
    for e in (entry(0), entry(0, env=1), entry(1), entry(1, env=1), entry(2)):
        buffer.add(e)
    assert buffer.take(4) == ["0/0", "0/1", "0/2", "1/0"]


def test_samples_per_insert_makes_the_consumer_wait_for_fresh_data():
    """D-54."""
    buffer = make(max_chunks=8, max_reuse=4, samples_per_insert=1.5)
    for i in range(4):
        buffer.add(entry(i))
    buffer.add(entry(4, session="old"))  # not fresh
    assert buffer.take(4)
    assert buffer.take(4) is None
    assert buffer.take(2)
    buffer.add(entry(5))
    assert buffer.take(2) is None
    assert buffer.take(1)


def test_samples_per_insert_and_a_full_buffer_do_not_wait_for_each_other():
    buffer = make(max_chunks=2, max_reuse=3, samples_per_insert=1.0)
    buffer.add(entry(0))
    buffer.add(entry(1))
    assert buffer.take(2)
    assert not buffer.has_room()
    assert buffer.take(2, ahead=1) is None
    for i in (2, 3):
        assert buffer.has_room(), "what was trained on makes room"
        buffer.add(entry(i))
    assert (buffer.counters.trained, buffer.counters.dropped, buffer.counters.over_limit) == (2, 0, 0)
    assert buffer.take(2) == ["0/2", "0/3"]


def test_what_a_dead_buffer_held_is_lost_and_the_next_one_goes_on():
    buffer = make(max_chunks=8)
    for i in range(3):
        buffer.add(entry(i))
    buffer.take(1)
    again = CheckedBuffer(ReplayConfig(max_chunks=8), LENGTH, counters=buffer.counters.after_loss())
    again.check()
    assert (again.counters.inserted, again.counters.trained, again.counters.lost) == (3, 1, 2)
    again.set_version("s", 1)
    again.add(entry(3))
    assert again.take(1) == ["0/3"]
    assert again.counters == ReplayCounters(
        inserted=4, inserted_steps=16, trained=2, dropped=2, lost=2, sampled=2, held=0
    )


@pytest.mark.parametrize("seed", range(40))
def test_bounds_hold_in_every_lease_and_the_counters_balance(seed):
    """D-16, D-17, D-54."""
    rng = random.Random(seed)
    reuse = rng.randint(1, 3)
    config = ReplayConfig(
        max_chunks=rng.randint(2, 6), max_staleness=2, max_reuse=reuse, fragments_per_chunk=rng.randint(1, 2),
        sampling=rng.choice(["fifo", "uniform", "runs"]), max_gib=rng.choice([0, 9.5 / 1024]),
        samples_per_insert=rng.choice([0, 0, 1.0, 1.5]) if reuse > 1 else 0,
        when_full=rng.choice(["wait", "drop_oldest"]),
    )  # fmt: skip
    buffer = CheckedBuffer(config, LENGTH, seed)
    version, uses, number, open_leases, fresh = 1, {}, {}, [], 0
    buffer.set_version("s", version)
    for _ in range(400):
        kind = rng.random()
        if kind < 0.55:
            env = rng.randrange(4)
            number[env] = number.get(env, -1) + rng.choice([1, 1, 1, 2])
            new = entry(number[env], version - rng.choice([0, 0, 1, 2, 3]), env, session=rng.choice("ssst"))
            if buffer.has_room(BYTES):
                fresh += new.metadata.session_id == "s" and version - new.metadata.version_first <= 2
                assert buffer.add(new)
                assert rng.random() > 0.1 or not buffer.add(new)
        elif kind < 0.75:
            ahead = rng.randrange(3)
            lease = buffer.lease(config.fragments_per_chunk * rng.randint(1, 2), ahead)
            if lease is None:
                continue
            open_leases.append(lease)
            assert not config.samples_per_insert or buffer.counters.sampled <= config.samples_per_insert * fresh
            for e in lease.entries:
                assert version + ahead - e.metadata.version_first <= 2
                assert e.metadata.session_id == "s"
                uses[e.reference] = uses.get(e.reference, 0) + 1
        elif kind < 0.9 and open_leases:
            lease = open_leases.pop(rng.randrange(len(open_leases)))
            bad = [i for i in ids(lease.entries) if rng.random() < 0.1]
            assert buffer.release(lease.id, lost=bad)
        else:
            version += 1
            buffer.set_version("s", version)
    assert max(uses.values()) <= config.max_reuse


def test_the_actor_makes_producers_wait_for_room_and_consumers_for_data():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=1), LENGTH, 0)
        await actor.set_version("s", 1)
        assert (await actor.lease(1, 0.01))[0] is None
        waiting = asyncio.create_task(actor.lease(1, 5.0))
        await asyncio.sleep(0)
        await actor.add(["a"], [entry(0).metadata], "w", 0)
        lease, _ = await waiting
        assert [e.reference for e in lease.entries] == ["a"]
        assert await actor.entries(lease.id, ids(lease.entries)) == list(lease.entries)
        blocked = [asyncio.create_task(actor.add([i], [entry(i).metadata], "w", i)) for i in (1, 2)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in blocked), "what is lent takes room"
        counters = await actor.release(lease.id)
        assert counters.trained == 1
        await asyncio.wait_for(blocked[0], 1.0)
        await asyncio.sleep(0.05)
        assert not blocked[1].done()
        lease, _ = await actor.lease(1, 1.0)
        assert [e.reference for e in lease.entries] == [1], "who waits longest comes first"
        await actor.release(lease.id)
        await asyncio.wait_for(blocked[1], 1.0)
        status = await actor.status()
        assert (status.ready, status.counters.inserted, status.counters.trained) == (1, 3, 2)
        assert status.counters.balanced

    asyncio.run(scenario())


def test_the_actor_keeps_the_order_of_each_producer_whatever_order_its_calls_run_in():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=8, fragments_per_chunk=3), LENGTH, 0)
        await actor.set_version("s", 1)
        calls = [(i, stream) for i in range(6) for stream in range(2)]
        random.Random(0).shuffle(calls)
        tasks = [
            asyncio.create_task(actor.add([i], [entry(i, env=stream).metadata], str(stream), i)) for i, stream in calls
        ]
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        await asyncio.wait_for(actor.add([3], [entry(3).metadata], "0", 3), 5)  # repeated
        status = await actor.status()
        assert (status.ready, status.counters.inserted, status.counters.dropped) == (12, 12, 0)
        lease, _ = await actor.lease(12, 1.0)
        assert len(run_lengths(lease.entries)) == 2
        await actor.set_version("s", 7)
        await actor.set_version("s", 6)
        assert (await actor.status()).version == 7

    asyncio.run(scenario())


def test_what_is_told_together_comes_in_as_far_as_there_is_room():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=3), LENGTH, 0)
        await actor.set_version("s", 1)

        def add(*numbers):
            return asyncio.create_task(actor.add(list(numbers), [entry(i).metadata for i in numbers], "w", numbers[0]))

        later = add(5)
        assert await add(0, 1, 2, 3, 4) == 3
        rest = add(3, 4)
        await asyncio.sleep(0.05)
        assert not rest.done(), "there is no room for the first of them"
        lease, _ = await actor.lease(1, 1.0)
        await actor.release(lease.id)
        assert await asyncio.wait_for(rest, 1.0) == 1
        assert await add(2, 3) == 2, "they are there already"
        assert not later.done(), "4 has not come"
        lease, _ = await actor.lease(3, 1.0)
        assert [e.reference for e in lease.entries] == [1, 2, 3]
        await actor.release(lease.id)
        assert (await add(4), await later) == (1, 1)
        counters = (await actor.status()).counters
        assert (counters.inserted, counters.duplicates, counters.trained, counters.held) == (6, 0, 4, 2)

    asyncio.run(scenario())


def test_a_consumer_takes_what_it_waited_for_before_more_comes_in_than_there_is_room_for():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=2), LENGTH, 0)
        await actor.set_version("s", 1)
        waiting = asyncio.create_task(actor.lease(2, 5.0))
        await asyncio.sleep(0)
        assert await actor.add(list(range(4)), [entry(i).metadata for i in range(4)], "w", 0) == 2
        assert [e.reference for e in (await waiting)[0].entries] == [0, 1]
        assert (await actor.status()).counters.over_limit == 0

    asyncio.run(scenario())


def test_a_starving_consumer_lets_waiting_producers_in_and_nobody_else_does():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=1, max_gib=1.5 / 1024), LENGTH, 0)
        await actor.set_version("s", 1)
        await actor.add([0], [entry(0).metadata], "w", 0)
        blocked = asyncio.create_task(actor.add([1], [entry(1).metadata], "w", 1))
        assert (await actor.lease(2, 0.05, ahead=1))[0] is None
        assert not blocked.done(), "the learner is at work: no need to exceed the budget"
        two, one = asyncio.create_task(actor.lease(2, 5.0)), asyncio.create_task(actor.lease(2, 0.1, ahead=1))
        assert len((await two)[0].entries) == 2
        assert (await one)[0] is None
        assert blocked.done()
        assert (await actor.status()).counters.over_limit == 1

    asyncio.run(scenario())
