"""What a replay buffer keeps, samples and lends: fragments, whose data lie elsewhere, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata


@dataclass(frozen=True)
class Entry:
    """One fragment: where it is and what it is."""

    reference: Any
    metadata: FragmentMetadata


@dataclass(frozen=True)
class Lease:
    """Fragments lent to one consumer until it gives them back with `release`.

    Attributes:
      id: names the lease; unique over all buffers of a run.
      entries: chunks one behind the other.
    """

    id: str
    entries: Sequence[Entry]


@dataclass(eq=False)
class Chunk:
    """Consecutive fragments of one environment that are sampled together.

    Attributes:
      entries: in the order in which they were played, all of one session.
      version: oldest policy version in it.
      uses: leases that it was part of, open ones included.
      open_leases: leases that it is part of now.
      trained: fragments that a consumer has used.
      lost: fragments whose data no consumer can get.
    """

    entries: list[Entry] = field(default_factory=list)
    version: int = 2**63
    uses: int = 0
    open_leases: int = 0
    trained: set[FragmentId] = field(default_factory=set)
    lost: set[FragmentId] = field(default_factory=set)

    @property
    def session_id(self) -> str:
        return self.entries[0].metadata.session_id

    @property
    def source(self) -> tuple[int, int, int]:
        return self.entries[0].metadata.source

    def append(self, entry: Entry) -> None:
        """Takes the next fragment."""
        self.entries.append(entry)
        self.version = min(self.version, entry.metadata.version_first)
