"""The replay buffer: which fragments may be trained on, and which are next.

Plain bookkeeping, for one thread, without Ray and without clocks: it holds references and metadata, whatever a
reference may be. `ReplayBufferActor` makes it a service, whose data lie in Ray's object store.
"""

from __future__ import annotations

import collections
import itertools
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minestudio_jax.config import ReplayConfig
from minestudio_jax.rollout.fragment import FragmentId
from minestudio_jax.rollout.replay_chunk import Chunk, Entry, Lease
from minestudio_jax.rollout.replay_counters import ReplayCounters

_REMEMBERED = 256  # newest fragments of each environment that would be known again if they came twice
_GIB = 2**30


@dataclass
class ReplayBuffer:
    """Admission, eviction, sampling and lending.

    A chunk is lent only while its oldest policy version will be at most `max_staleness` behind when it is trained on,
    and to at most `max_reuse` leases in all: with `max_reuse=1` two leases never share a fragment; with more they may,
    at the same time too. What is lent is held until it is released, and counts for capacity and bytes.

    Args:
      config: capacity, staleness, reuse, sampling, limits.
      fragment_length: T, to tell whether fragments are consecutive.
      seed: of uniform sampling.
      counters: to go on with; those of a buffer that died, `after_loss`.
    """

    config: ReplayConfig
    fragment_length: int
    seed: int = 0
    counters: ReplayCounters = field(default_factory=ReplayCounters)
    session_id: str = ""
    version: int = 0

    def __post_init__(self) -> None:
        self._chunks: list[Chunk] = []  # complete, oldest first
        self._assembling: dict[tuple[int, int, int], Chunk] = {}
        self._leases: dict[str, tuple[Lease, list[Chunk]]] = {}
        self._names = (f"{uuid.uuid4().hex[:12]}-{n}" for n in itertools.count())
        self._recent: dict[Any, collections.deque[int]] = {}  # environment's life -> newest fragment numbers
        self._dead: set[tuple[int, int]] = set()  # worker and life
        self._random = random.Random(self.seed)
        self._fresh = self.counters.inserted  # inserted and eligible then
        self._starving = False  # a consumer who has nothing else to do waits
        self._limited = False  # a consumer waits for samples_per_insert

    def ready(self, ahead: int = 0) -> int:
        """Fragments that could be leased now, samples_per_insert aside; `ahead` as in `lease`."""
        return sum(len(chunk.entries) for chunk in self._available(ahead))

    def producers(self) -> set[tuple[int, int]]:
        """Worker and life of those whose fragments are held: the data of some die with them."""
        held = itertools.chain(self._chunks, self._assembling.values())
        return {chunk.source[:2] for chunk in held}

    def set_version(self, session_id: str, version: int) -> None:
        """Tells the newest published version; what has become too old or belongs to another session leaves.

        The leases of another session end. A version older than the newest is no news.
        """
        if session_id == self.session_id and version < self.version:
            return
        if session_id != self.session_id:
            for _, chunks in self._leases.values():
                for chunk in chunks:
                    chunk.open_leases = 0
            self._leases.clear()
            self._dead.clear()
            self._recent = {source: numbers for source, numbers in self._recent.items() if source[0] == session_id}
        self.session_id, self.version = session_id, version
        for source, chunk in list(self._assembling.items()):
            if not self._eligible(chunk):
                del self._assembling[source]
                self._leave(chunk)
        self._chunks = [chunk for chunk in self._chunks if not self._left(chunk)]

    def has_room(self, num_bytes: int = 0) -> bool:
        """Whether a fragment may be added now, or its producer has to wait: `when_full`.

        Nobody waits while a consumer starves: it could not be helped by what the buffer holds. A consumer that waits
        for samples_per_insert makes room where fragments have been trained on already.
        """
        return (
            self.config.when_full == "drop_oldest"
            or not self._over(len(self._chunks) + 1, self.counters.held_bytes + num_bytes)
            or self._starving
            or (self._limited and any(chunk.trained and not chunk.open_leases for chunk in self._chunks))
        )

    def add(self, entry: Entry) -> bool:
        """Takes one fragment; it may leave again at once if it is not eligible.

        At capacity the oldest chunk leaves that is not lent; who would rather wait asks `has_room` first.

        Returns:
          Whether it was new: one that has been here before is ignored.
        """
        metadata, counters = entry.metadata, self.counters
        recent = self._recent.setdefault((metadata.session_id, *metadata.source), collections.deque(maxlen=_REMEMBERED))
        if metadata.fragment_index in recent:
            counters.duplicates += 1
            return False
        recent.append(metadata.fragment_index)
        counters.inserted += 1
        counters.inserted_steps += metadata.valid_steps
        counters.held += 1
        counters.held_bytes += metadata.num_bytes
        new = Chunk()
        new.append(entry)
        if metadata.source[:2] in self._dead:
            new.lost.add(metadata.id)
        if new.lost or not self._eligible(new):
            self._leave(new)
            return True
        self._fresh += 1
        chunk = self._assembling.pop(metadata.source, None)
        if chunk is not None and not chunk.entries[-1].metadata.continued_by(metadata, self.fragment_length):
            self._leave(chunk)
            chunk = None
        if chunk is None:
            chunk = new
        else:
            chunk.append(entry)
        complete = len(chunk.entries) == self.config.fragments_per_chunk
        self._make_room(int(complete))
        if complete:
            self._chunks.append(chunk)
        else:
            self._assembling[metadata.source] = chunk
        return True

    def lease(self, num_fragments: int, ahead: int = 0) -> Lease | None:
        """Lends fragments for one iteration, whole chunks; None if there are not enough yet.

        Args:
          num_fragments: rounded up to whole chunks.
          ahead: versions that will have been published, beyond the newest one, when the fragments are trained on.
        """
        wanted = -(-num_fragments // self.config.fragments_per_chunk)
        limit = self.config.samples_per_insert
        self._limited = limit > 0 and self.counters.sampled + num_fragments > limit * self._fresh
        available = self._available(ahead) if len(self._chunks) >= wanted else []
        if self._limited or len(available) < wanted:
            self._starving = ahead == 0
            return None
        self._starving = False
        chosen = self._choose(available, wanted)
        for chunk in chosen:
            chunk.uses += 1
            chunk.open_leases += 1
        lease = Lease(next(self._names), tuple(entry for chunk in chosen for entry in chunk.entries))
        self._leases[lease.id] = (lease, chosen)
        self.counters.sampled += len(lease.entries)
        return lease

    def stop_waiting(self) -> None:
        """Says that whoever was refused by `lease` does not wait any longer."""
        self._starving = self._limited = False

    @property
    def someone_waits(self) -> tuple[bool, bool]:
        """Whether a consumer starves, and whether one waits for samples_per_insert: see `has_room`."""
        return self._starving, self._limited

    def entries(self, lease_id: str, ids: Iterable[FragmentId]) -> Sequence[Entry]:
        """Entries of a lease, for a consumer that was told of them by another one.

        Args:
          lease_id: the lease.
          ids: of fragments in it, in the order in which they are wanted.
        Raises:
          LookupError: there is no such lease, or no longer, or no such fragment in it.
        """
        if lease_id not in self._leases:
            raise LookupError(f"lease {lease_id} is not open: it was released, or a new session began")
        entries = {entry.metadata.id: entry for entry in self._leases[lease_id][0].entries}
        return [entries[fragment_id] for fragment_id in ids]

    def release(self, lease_id: str, lost: Iterable[FragmentId] = (), unused: Iterable[FragmentId] = ()) -> bool:
        """Takes a lease back: its fragments have been trained on, but for those named.

        Args:
          lease_id: the lease.
          lost: fragments whose data could not be got; they leave, and the rest of their chunks with them.
          unused: fragments that were not needed. A chunk of them is as if it had not been lent; a part of a chunk is
            not lent again.
        Returns:
          False if there is no such lease, or no longer.
        """
        if lease_id not in self._leases:
            return False
        lost, unused = set(lost), set(unused)
        _, chunks = self._leases.pop(lease_id)
        for chunk in chunks:
            ids = {entry.metadata.id for entry in chunk.entries}
            chunk.open_leases -= 1
            chunk.lost |= ids & lost
            chunk.trained |= ids - lost - unused
            self.counters.sampled -= len(ids & (lost | unused))
            if ids <= unused:
                chunk.uses -= 1
            elif ids & unused:
                chunk.uses = self.config.max_reuse
        self._chunks = [chunk for chunk in self._chunks if not self._left(chunk)]
        return True

    def lose(self, worker_id: int, worker_life: int) -> None:
        """Takes note that a worker is dead, and its fragments' data with it. They leave, those too that still arrive.

        What is lent leaves when it is released: by then its consumer knows what of it could be read.
        """
        self._dead.add((worker_id, worker_life))
        of_the_dead = [c for c in (*self._chunks, *self._assembling.values()) if c.source[:2] in self._dead]
        for chunk in of_the_dead:
            chunk.lost |= {entry.metadata.id for entry in chunk.entries}
            if self._assembling.get(chunk.source) is chunk:
                self._leave(self._assembling.pop(chunk.source))
        self._chunks = [chunk for chunk in self._chunks if not self._left(chunk)]

    def complete_no_more(self, worker_id: int, worker_life: int) -> None:
        """Takes note that a worker delivers nothing more: the chunks it has begun leave, as they stay incomplete."""
        for source, chunk in list(self._assembling.items()):
            if chunk.source[:2] == (worker_id, worker_life):
                del self._assembling[source]
                self._leave(chunk)

    def check(self) -> None:
        """Counts everything anew.

        Raises:
          AssertionError: the counters do not say what the buffer holds, or do not balance.
        """
        held = [e for chunk in (*self._chunks, *self._assembling.values()) for e in chunk.entries]
        counters = self.counters
        assert counters.balanced, counters
        assert counters.held == len(held), (counters, len(held))
        assert counters.held_bytes == sum(e.metadata.num_bytes for e in held), counters
        lent = [chunk for _, chunks in self._leases.values() for chunk in chunks]
        for chunk in self._chunks:
            assert chunk.open_leases == lent.count(chunk), (chunk, lent)

    def _eligible(self, chunk: Chunk, ahead: int = 0) -> bool:
        fresh = self.version + ahead - chunk.version <= self.config.max_staleness
        return fresh and chunk.session_id == self.session_id

    def _available(self, ahead: int) -> list[Chunk]:
        return [
            chunk
            for chunk in self._chunks
            if chunk.uses < self.config.max_reuse and not chunk.lost and self._eligible(chunk, ahead)
        ]

    def _choose(self, available: list[Chunk], wanted: int) -> list[Chunk]:
        if self.config.sampling == "uniform":
            return self._random.sample(available, wanted)
        if self.config.sampling == "runs":
            available = [chunk for run in self._runs(available) for chunk in run]
        return available[:wanted]

    def _runs(self, chunks: Iterable[Chunk]) -> list[list[Chunk]]:
        """Chunks that were played one after the other, the run with the oldest chunk first."""
        runs: list[list[Chunk]] = []
        newest: dict[Any, list[Chunk]] = {}  # environment's life -> its last run
        for chunk in chunks:
            source = chunk.source
            run = newest.get(source)
            if run and run[-1].entries[-1].metadata.continued_by(chunk.entries[0].metadata, self.fragment_length):
                run.append(chunk)
            else:
                newest[source] = [chunk]
                runs.append(newest[source])
        return runs

    def _over(self, num_chunks: int, num_bytes: int) -> bool:
        budget = self.config.max_gib * _GIB
        return num_chunks > self.config.max_chunks or 0 < budget < num_bytes

    def _make_room(self, new_chunks: int) -> None:
        """Lets chunks leave until a fragment that is counted already, and `new_chunks` chunks, fit."""
        waited_for = self.config.when_full == "wait" and (self._starving or self._limited)
        while self._over(len(self._chunks) + new_chunks, self.counters.held_bytes):
            free = (chunk for chunk in self._chunks if not chunk.open_leases and (chunk.trained or not waited_for))
            oldest = next(free, None)
            if oldest is None:
                self.counters.over_limit += 1
                return
            self._chunks.remove(oldest)
            self._leave(oldest)

    def _left(self, chunk: Chunk) -> bool:
        """Lets a complete chunk leave if it is of no more use and nobody holds it."""
        used_up = chunk.uses >= self.config.max_reuse or bool(chunk.lost)
        if chunk.open_leases or not (used_up or not self._eligible(chunk)):
            return False
        self._leave(chunk)
        return True

    def _leave(self, chunk: Chunk) -> None:
        """Counts what a chunk's fragments leave as."""
        counters = self.counters
        expired = chunk.session_id == self.session_id and not chunk.lost and not self._eligible(chunk)
        for entry in chunk.entries:
            counters.held -= 1
            counters.held_bytes -= entry.metadata.num_bytes
            if entry.metadata.id in chunk.trained:
                counters.trained += 1
            elif expired:
                counters.expired += 1
            else:
                counters.dropped += 1
                counters.lost += entry.metadata.id in chunk.lost
