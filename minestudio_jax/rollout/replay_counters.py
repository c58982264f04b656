"""ReplayCounters: what became of every fragment that a replay buffer was given."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass
class ReplayCounters:
    """Fragments since the start of the run's process. inserted = trained + expired + dropped + held, always.

    Attributes:
      inserted: received, each once.
      inserted_steps: genuine steps in them.
      held: in the buffer now, chunks being assembled and leased ones included.
      held_bytes: of their arrays.
      trained: left after having been trained on at least once.
      expired: left unused because their policy version was too old.
      dropped: left unused for another reason: another session, the buffer was full, a gap in a chunk, lost.
      lost: the part of `dropped` whose data were gone: their producer died, or a buffer died that held them.
      sampled: fragments lent to consumers and not given back unused, each time counted.
      duplicates: received a second time and ignored; not in `inserted`.
      over_limit: inserted beyond capacity or byte budget, because a consumer would have waited for ever.
    """

    inserted: int = 0
    inserted_steps: int = 0
    held: int = 0
    held_bytes: int = 0
    trained: int = 0
    expired: int = 0
    dropped: int = 0
    lost: int = 0
    sampled: int = 0
    duplicates: int = 0
    over_limit: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every fragment that was inserted is accounted for."""
        return (
            self.inserted == self.trained + self.expired + self.dropped + self.held
            and 0 <= self.lost <= self.dropped
            and min(self.inserted_steps, self.held, self.held_bytes, self.trained, self.expired, self.sampled) >= 0
        )

    def metrics(self) -> dict[str, float]:
        """By metric name."""
        return {
            "replay/held_fragments": float(self.held),
            "replay/held_bytes": float(self.held_bytes),
            "replay/inserted_fragments": float(self.inserted),
            "replay/trained_fragments": float(self.trained),
            "replay/expired_fragments": float(self.expired),
            "replay/dropped_fragments": float(self.dropped),
            "replay/lost_fragments": float(self.lost),
        }

    def after_loss(self) -> ReplayCounters:
        """The counters of a buffer that takes the place of one that died with all that it held."""
        return replace(self, held=0, held_bytes=0, dropped=self.dropped + self.held, lost=self.lost + self.held)
