"""Admission, staleness, reuse and the balance of the replay buffer."""

from __future__ import annotations

import asyncio
import random

import pytest

from minestudio_jax.config import ReplayConfig
from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.rollout.replay_buffer import Entry, ReplayBuffer, ReplayBufferActor

LENGTH = 4


def entry(index, version=1, env=0, session="s", name=None):
    metadata = FragmentMetadata(0, 0, env, index, index * LENGTH, LENGTH, session, version, version, "task")
    return Entry(name or f"{env}/{index}", metadata)


def make(version=1, **settings):
    buffer = ReplayBuffer(ReplayConfig(**settings), LENGTH)
    buffer.set_version("s", version)
    return buffer


def balanced(buffer):
    c = buffer.counters
    return c.inserted == c.held + c.used + c.expired + c.dropped


def test_fragments_come_oldest_first_and_only_when_there_are_enough():
    buffer = make(max_chunks=8, max_staleness=2)
    for i in range(3):
        buffer.add(entry(i))
    assert buffer.take(4) is None
    assert [e.reference for e in buffer.take(2)] == ["0/0", "0/1"]
    assert buffer.ready == 1
    assert balanced(buffer)


def test_a_fragment_is_used_max_reuse_times():
    buffer = make(max_chunks=8, max_reuse=2)
    buffer.add(entry(0))
    assert buffer.take(1)
    assert buffer.take(1)
    assert buffer.take(1) is None
    assert buffer.counters.used == 1


def test_stale_fragments_leave_even_behind_fresh_ones():
    """D-17."""
    buffer = make(max_chunks=8, max_staleness=1, version=5)
    buffer.add(entry(0, version=5))
    buffer.add(entry(0, version=4, env=1))
    buffer.set_version("s", 6)
    assert [e.reference for e in buffer.take(1)] == ["0/0"]
    assert buffer.counters.expired == 1
    assert balanced(buffer)


def test_fragments_of_another_session_are_never_taken():
    buffer = make(max_chunks=8)
    buffer.add(entry(0, session="old"))
    assert buffer.ready == 0
    assert buffer.counters.dropped == 1


def test_at_capacity_the_oldest_is_dropped():
    buffer = make(max_chunks=2)
    for i in range(3):
        buffer.add(entry(i))
    assert [e.reference for e in buffer.take(2)] == ["0/1", "0/2"]
    assert buffer.counters.dropped == 1
    assert balanced(buffer)


def test_a_chunk_holds_consecutive_fragments_and_a_gap_begins_a_new_one():
    """D-15, D-28."""
    buffer = make(max_chunks=4, fragments_per_chunk=2)
    for e in (entry(0), entry(0, env=1), entry(2), entry(1, env=1), entry(3)):
        buffer.add(e)
    assert sorted(e.reference for e in buffer.take(4)) == ["0/2", "0/3", "1/0", "1/1"]
    assert buffer.counters.dropped == 1
    assert balanced(buffer)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_in_every_batch_and_the_counters_balance(seed):
    """D-16, D-17."""
    rng = random.Random(seed)
    buffer = ReplayBuffer(
        ReplayConfig(
            max_chunks=rng.randint(2, 6), max_staleness=2, max_reuse=rng.randint(1, 3),
            fragments_per_chunk=rng.randint(1, 2), sampling=rng.choice(["fifo", "uniform"]),
        ),
        LENGTH,
        seed,
    )  # fmt: skip
    version, uses, number = 1, {}, {}
    buffer.set_version("s", version)
    for _ in range(300):
        kind = rng.random()
        if kind < 0.6:
            env = rng.randrange(4)
            number[env] = number.get(env, -1) + rng.choice([1, 1, 1, 2])
            stale = version - rng.choice([0, 0, 1, 2, 3])
            buffer.add(entry(number[env], version=stale, env=env, session=rng.choice("ssst")))
        elif kind < 0.8:
            taken = buffer.take(buffer.config.fragments_per_chunk * rng.randint(1, 2)) or []
            for e in taken:
                assert version - e.metadata.version_first <= 2
                assert e.metadata.session_id == "s"
                uses[e.reference] = uses.get(e.reference, 0) + 1
        else:
            version += 1
            buffer.set_version("s", version)
        assert balanced(buffer)
    assert max(uses.values()) <= buffer.config.max_reuse


def test_the_actor_makes_producers_wait_for_room_and_consumers_for_data():
    async def scenario():
        actor = ReplayBufferActor(ReplayConfig(max_chunks=1), LENGTH, 0)
        await actor.set_version("s", 1)
        assert (await actor.take(1, 0.01))[0] is None
        waiting = asyncio.create_task(actor.take(1, 5.0))
        await asyncio.sleep(0)
        await actor.add(["a"], entry(0).metadata)
        assert [e.reference for e in (await waiting)[0]] == ["a"]
        await actor.add(["b"], entry(1).metadata)
        blocked = asyncio.create_task(actor.add(["c"], entry(2).metadata))
        await asyncio.sleep(0.05)
        assert not blocked.done()
        assert [e.reference for e in (await actor.take(1, 1.0))[0]] == ["b"]
        await asyncio.wait_for(blocked, 1.0)
        ready, counters = await actor.status()
        assert (ready, counters.inserted, counters.used) == (1, 3, 2)

    asyncio.run(scenario())
