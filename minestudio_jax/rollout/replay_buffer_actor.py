"""The replay buffer as a Ray actor: producers wait for room, consumers for data."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minestudio_jax.config import ReplayConfig
from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata
from minestudio_jax.rollout.replay_buffer import ReplayBuffer
from minestudio_jax.rollout.replay_chunk import Entry, Lease
from minestudio_jax.rollout.replay_counters import ReplayCounters

# Calls that may wait at a time: every worker has up to rollout.to_send_queue_size of them.
MAX_CALLS = 100_000


@dataclass(frozen=True)
class ReplayStatus:
    """What a replay buffer says of itself.

    Attributes:
      ready: fragments that could be leased now.
      counters: since the start of the run's process.
      session_id, version: newest that it was told.
      producers: worker and life of those whose fragments are held.
    """

    ready: int
    counters: ReplayCounters
    session_id: str
    version: int
    producers: set[tuple[int, int]]


class ReplayBufferActor:
    """An asynchronous actor; the data themselves never pass through it.

    Args:
      config, fragment_length, seed, counters: as ReplayBuffer.
    """

    def __init__(
        self, config: ReplayConfig, fragment_length: int, seed: int, counters: ReplayCounters | None = None
    ) -> None:
        self._buffer = ReplayBuffer(config, fragment_length, seed, counters or ReplayCounters())
        self._changed = asyncio.Condition()
        self._next: dict[str, int] = {}  # of each stream of fragments

    async def set_version(self, session_id: str, version: int) -> None:
        async with self._changed:
            self._buffer.set_version(session_id, version)
            self._changed.notify_all()

    async def add(
        self, references: Sequence[Any], metadata: Sequence[FragmentMetadata], stream: str, number: int
    ) -> int:
        """Inserts fragments; with `when_full=wait` only once there is room for the first.

        Ray runs the calls of an asynchronous actor in any order; fragments must come in theirs, or those of one
        environment would not be found to be consecutive. So each waits for the one before it in its stream.

        Args:
          references: one object reference for each fragment, in a list, so that Ray does not fetch the data.
          metadata: of each fragment.
          stream: names a producer's sequence of fragments for this actor.
          number: of the first of these within it, from 0. What may not have been heard is repeated with its number.
        Returns:
          How many it has taken, the first at least; for the others there was no room.
        """
        for taken, (reference, described) in enumerate(zip(references, metadata, strict=True)):
            may_come = partial(self._may_come, stream, number + taken, described.num_bytes)
            async with self._changed:
                if taken and not may_come():
                    return taken
                await self._changed.wait_for(may_come)
                if number + taken == self._next.get(stream, 0):
                    self._next[stream] = number + taken + 1
                    self._buffer.add(Entry(reference, described))
                    self._changed.notify_all()
            await asyncio.sleep(0)  # a consumer that waited for this one takes it before the next one asks for room
        return len(references)

    async def lease(self, num_fragments: int, timeout_s: float, ahead: int = 0) -> tuple[Lease | None, ReplayCounters]:
        """As ReplayBuffer.lease, but waits up to `timeout_s` for enough fragments; and the counters."""
        async with self._changed:
            try:
                lease = await asyncio.wait_for(self._lease(num_fragments, ahead), timeout_s)
            except TimeoutError:
                lease = None
                self._buffer.stop_waiting()
            self._changed.notify_all()
            return lease, self._counters()

    async def entries(self, lease_id: str, ids: Iterable[FragmentId]) -> Sequence[Entry]:
        """As ReplayBuffer.entries."""
        return self._buffer.entries(lease_id, ids)

    async def release(
        self, lease_id: str, lost: Iterable[FragmentId] = (), unused: Iterable[FragmentId] = ()
    ) -> ReplayCounters:
        """As ReplayBuffer.release; a lease that is not open is ignored. Returns the counters."""
        async with self._changed:
            self._buffer.release(lease_id, lost, unused)
            self._changed.notify_all()
            return self._counters()

    async def lose(self, worker_id: int, worker_life: int) -> None:
        """As ReplayBuffer.lose."""
        async with self._changed:
            self._buffer.lose(worker_id, worker_life)
            self._changed.notify_all()

    async def complete_no_more(self, worker_id: int, worker_life: int) -> None:
        """As ReplayBuffer.complete_no_more."""
        async with self._changed:
            self._buffer.complete_no_more(worker_id, worker_life)
            self._changed.notify_all()

    async def status(self) -> ReplayStatus:
        buffer = self._buffer
        return ReplayStatus(buffer.ready(), self._counters(), buffer.session_id, buffer.version, buffer.producers())

    def _may_come(self, stream: str, number: int, num_bytes: int) -> bool:
        """Whether a fragment is there already, or it is its turn and there is room for it."""
        awaited = self._next.get(stream, 0)
        return number < awaited or (number == awaited and self._buffer.has_room(num_bytes))

    async def _lease(self, num_fragments: int, ahead: int) -> Lease:
        while True:
            before = self._buffer.someone_waits
            lease = self._buffer.lease(num_fragments, ahead)
            if lease is not None:
                return lease
            if self._buffer.someone_waits != before:
                self._changed.notify_all()  # producers may go on
            await self._changed.wait()

    def _counters(self) -> ReplayCounters:
        return dataclasses.replace(self._buffer.counters)
