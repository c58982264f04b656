"""Counts of one episode, from statistics that count since the world began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, Mapping

Statistics = Mapping[str, Mapping[str, int]]  # group -> name -> count


class EpisodeCount:
    """How often something has happened since the episode began.

    Each count is held against the highest it has reached in this episode: what an earlier episode in the same world has
    left counts for nothing, and a count that falls and comes back, as when a simulator leaves it out of a frame, does
    not count twice.

    Args:
      event, objects: group and names; counts of different names add up.
    Attributes:
      total: since `begin`.
    """

    def __init__(self, event: str, objects: Sequence[str]) -> None:
        self._event, self._objects = event, tuple(objects)
        self._highest: List[int] = [0] * len(self._objects)
        self.total = 0

    def begin(self, statistics: Statistics) -> None:
        """An episode begins with these statistics."""
        self._highest = self._counts(statistics)
        self.total = 0

    def rise(self, statistics: Statistics) -> int:
        """By how much it has risen since the last call, or since `begin`."""
        counts = self._counts(statistics)
        rise = sum(max(0, count - highest) for count, highest in zip(counts, self._highest))
        self._highest = [max(count, highest) for count, highest in zip(counts, self._highest)]
        self.total += rise
        return rise

    def _counts(self, statistics: Statistics) -> List[int]:
        group = statistics.get(self._event, {})
        return [int(group.get(name, 0)) for name in self._objects]
