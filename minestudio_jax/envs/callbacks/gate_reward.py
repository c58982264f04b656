"""A reward for building the frame of a nether portal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, FrozenSet, Optional, Sequence, Tuple

from minestudio_jax.envs.callbacks.voxels import AROUND
from minestudio_jax.envs.env import REWARD_PREFIX, EnvironmentFailure
from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator, no_keys
from minestudio_jax.envs.tasks import RewardTerm

Cell = Tuple[int, int, int]

# (along, up) from the lowest corner: the 14 blocks of a frame 4 wide and 5 high, and the 6 cells that it encloses.
FRAME = frozenset((a, u) for a in range(4) for u in range(5) if a in (0, 3) or u in (0, 4))
HOLE = frozenset((a, u) for a in (1, 2) for u in (1, 2, 3))
_ALL_BUT_TWO = len(FRAME) - 2


def gate_score(obsidian: Iterable[Cell]) -> float:
    """How nearly blocks of obsidian are a portal's frame.

    Of the best frame that has an obsidian block as its lowest corner: a point for each of its blocks, another for each
    of the last two, less one for each block that stands in its hole, less a tenth for each block that there is at all.
    Not below 0. As MineStudio's GateRewardsCallback has it.

    Args:
      obsidian: cells x, y, z.
    """
    cells: FrozenSet[Cell] = frozenset(obsidian)
    best = 0.0
    for x, y, z in cells:
        for east, south in ((1, 0), (0, 1)):
            framed, filled = (
                sum((x + along * east, y + up, z + along * south) in cells for along, up in part)
                for part in (FRAME, HOLE)
            )
            best = max(best, framed + max(0, framed - _ALL_BUT_TWO) - filled - 0.1 * len(cells))
    return best


class GateReward(Callback):
    """Pays by how much the score of a frame around the player has risen, and takes back as it falls.

    What stands there when the episode begins pays nothing. Obsidian out of sight of the box counts no more: walking
    away takes the score back, coming home gives it again.

    Args:
      term: with the reward for a point of the score.
    """

    def __init__(self, term: RewardTerm) -> None:
        self._term = term
        self._score = self._first = 0.0

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        frame = outcome.frame
        if not frame.done:
            frame = simulator.step({**no_keys(), "voxels": list(AROUND)})
        score = _score(frame.state)
        if score is None and not frame.done:
            raise EnvironmentFailure(
                f"the reward {self._term.name!r} looks at the blocks around the player, which this simulator does not "
                "tell: play the task in MineStudio's"
            )
        self._score = self._first = score or 0.0
        return dataclasses.replace(outcome, frame=frame)

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        score = _score(outcome.frame.state)
        if score is None:  # a frame without blocks says nothing of them
            score = self._score
        paid = (score - self._score) * self._term.reward
        self._score = score
        total = (score - self._first) * self._term.reward
        info = {**outcome.info, REWARD_PREFIX + self._term.name: total}
        return dataclasses.replace(outcome, reward=outcome.reward + paid, info=info)


def _score(state: Mapping[str, Any]) -> Optional[float]:
    """Of the blocks that a frame tells; None if it tells none."""
    voxels: Optional[Sequence[Mapping[str, Any]]] = state.get("voxels")
    if voxels is None:
        return None
    return gate_score((v["x"], v["y"], v["z"]) for v in voxels if str(v["type"]).rpartition(":")[2] == "obsidian")
