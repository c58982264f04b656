"""The replay buffer: which fragments may be trained on, and which are next.

It holds references and metadata; the data lie in Ray's object store, owned by the worker that made them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minestudio_jax.config import ReplayConfig
from minestudio_jax.rollout.fragment import FragmentMetadata


@dataclass(frozen=True)
class Entry:
    """One fragment: where it is and what it is."""

    reference: Any
    metadata: FragmentMetadata


@dataclass
class Chunk:
    """Consecutive fragments of one environment that are sampled together."""

    entries: list[Entry]
    uses: int = 0

    @property
    def version(self) -> int:
        """Oldest policy version in it."""
        return min(e.metadata.version_first for e in self.entries)


@dataclass
class ReplayCounters:
    """Fragments since the buffer was made. inserted = held + used + expired + dropped, always.

    Attributes:
      inserted: received.
      inserted_steps: genuine steps in them.
      held: in the buffer now, chunks being assembled included.
      used: left after having been trained on at least once.
      expired: left unused because their policy version was too old.
      dropped: left unused for another reason: another session, the buffer was full, a gap in a chunk.
    """

    inserted: int = 0
    inserted_steps: int = 0
    held: int = 0
    used: int = 0
    expired: int = 0
    dropped: int = 0


@dataclass
class ReplayBuffer:
    """Admission, eviction and sampling, as plain bookkeeping.

    Args:
      config: capacity, staleness, reuse, sampling.
      fragment_length: T, to tell whether fragments are consecutive.
      seed: of uniform sampling.
    """

    config: ReplayConfig
    fragment_length: int
    seed: int = 0
    session_id: str = ""
    version: int = 0
    counters: ReplayCounters = field(default_factory=ReplayCounters)

    def __post_init__(self) -> None:
        self._chunks: list[Chunk] = []  # oldest first
        self._assembling: dict[tuple[int, int, int], list[Entry]] = {}
        self._random = random.Random(self.seed)

    @property
    def full(self) -> bool:
        return len(self._chunks) >= self.config.max_chunks

    @property
    def ready(self) -> int:
        """Fragments that may be taken now."""
        return len(self._chunks) * self.config.fragments_per_chunk

    def set_version(self, session_id: str, version: int) -> None:
        """Tells the newest published version; what has become too old or belongs to another session leaves."""
        self.session_id, self.version = session_id, version
        for source in list(self._assembling):
            entries = self._assembling[source]
            if not self._eligible(entries):
                self._leave(self._assembling.pop(source), used=False)
        kept = []
        for chunk in self._chunks:
            if self._eligible(chunk.entries):
                kept.append(chunk)
            else:
                self._leave(chunk.entries, used=chunk.uses > 0)
        self._chunks = kept

    def add(self, entry: Entry) -> None:
        """Takes one fragment; it may leave again at once if it is not eligible."""
        self.counters.inserted += 1
        self.counters.inserted_steps += entry.metadata.valid_steps
        self.counters.held += 1
        if not self._eligible([entry]):
            self._leave([entry], used=False)
            return
        source = entry.metadata.source
        entries = self._assembling.pop(source, [])
        if entries and not entries[-1].metadata.continued_by(entry.metadata, self.fragment_length):
            self._leave(entries, used=False)
            entries = []
        entries.append(entry)
        if len(entries) < self.config.fragments_per_chunk:
            self._assembling[source] = entries
            return
        while self.full:
            oldest = self._chunks.pop(0)
            self._leave(oldest.entries, used=oldest.uses > 0)
        self._chunks.append(Chunk(entries))

    def take(self, num_fragments: int) -> list[Entry] | None:
        """Fragments for one iteration, or None if there are not enough.

        Args:
          num_fragments: a multiple of fragments_per_chunk.
        """
        wanted = num_fragments // self.config.fragments_per_chunk
        if len(self._chunks) < wanted:
            return None
        chosen = self._chunks[:wanted] if self.config.sampling == "fifo" else self._random.sample(self._chunks, wanted)
        for chunk in chosen:
            chunk.uses += 1
            if chunk.uses >= self.config.max_reuse:
                self._chunks.remove(chunk)
                self._leave(chunk.entries, used=True)
        return [entry for chunk in chosen for entry in chunk.entries]

    def _eligible(self, entries: Sequence[Entry]) -> bool:
        return all(
            e.metadata.session_id == self.session_id
            and self.version - e.metadata.version_first <= self.config.max_staleness
            for e in entries
        )

    def _leave(self, entries: Sequence[Entry], used: bool) -> None:
        for entry in entries:
            self.counters.held -= 1
            if used:
                self.counters.used += 1
            elif entry.metadata.session_id == self.session_id and not self._eligible([entry]):
                self.counters.expired += 1
            else:
                self.counters.dropped += 1


class ReplayBufferActor:
    """The buffer as an asynchronous Ray actor: `add` waits for room, `take` waits for enough.

    Args:
      config, fragment_length, seed: as ReplayBuffer.
    """

    def __init__(self, config: ReplayConfig, fragment_length: int, seed: int) -> None:
        self._buffer = ReplayBuffer(config, fragment_length, seed)
        self._changed = asyncio.Condition()

    async def set_version(self, session_id: str, version: int) -> None:
        async with self._changed:
            self._buffer.set_version(session_id, version)
            self._changed.notify_all()

    async def add(self, reference: list[Any], metadata: FragmentMetadata) -> None:
        """Inserts one fragment; with `when_full=wait` returns only once there was room for it.

        Args:
          reference: one object reference in a list, so that Ray does not fetch the data.
          metadata: of the fragment.
        """
        async with self._changed:
            if self._buffer.config.when_full == "wait":
                await self._changed.wait_for(lambda: not self._buffer.full)
            self._buffer.add(Entry(reference[0], metadata))
            self._changed.notify_all()

    async def take(self, num_fragments: int, timeout_s: float) -> tuple[list[Entry] | None, ReplayCounters]:
        """Fragments for one iteration, or None if there were not enough within `timeout_s`; and the counters."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._buffer.ready >= num_fragments), timeout_s)
            except TimeoutError:
                return None, self._buffer.counters
            entries = self._buffer.take(num_fragments)
            self._changed.notify_all()
            return entries, self._buffer.counters

    async def status(self) -> tuple[int, ReplayCounters]:
        """Fragments that could be taken now, and the counters."""
        return self._buffer.ready, self._buffer.counters
