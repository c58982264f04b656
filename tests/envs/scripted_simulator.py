"""A simulator that does as it is told, and remembers what was asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.envs.minecraft import Frame, Keys

SHAPE = (10, 12, 3)
NOTHING = {name: array[0] for name, array in actions.null_action().items()}  # an action


class ScriptedSimulator:
    """
    Args:
      react: called before every frame with this simulator and the keys, None in a reset; may change what it tells.
    Attributes:
      statistics, state, done: what the next frames tell.
      seeded: seeds that worlds were to follow from.
      asked: ("reset", seed) and ("step", keys), in order.
    """

    frame_shape = SHAPE

    def __init__(self, react: Callable[[ScriptedSimulator, Keys | None], None] = lambda simulator, keys: None) -> None:
        self.statistics: dict[str, dict[str, int]] = {}
        self.state: dict[str, Any] = {}
        self.done = False
        self.seeded: list[int] = []
        self.asked: list[tuple[str, Any]] = []
        self.closed = False
        self._react = react

    def seed_worlds(self, seed: int) -> None:
        self.seeded.append(seed)

    def reset(self, seed: int | None) -> Frame:
        self.asked.append(("reset", seed))
        self.done = False
        self._react(self, None)
        return self._frame()

    def step(self, keys: Keys) -> Frame:
        assert not self.done, "a mission that has ended cannot be stepped"
        self.asked.append(("step", dict(keys)))
        self._react(self, keys)
        return self._frame()

    def close(self) -> None:
        self.closed = True

    def chats(self) -> list[str]:
        """Commands so far, and forgets them."""
        said = [keys["chat"] for kind, keys in self.asked if kind == "step" and "chat" in keys]
        self.asked.clear()
        return said

    def _frame(self) -> Frame:
        statistics = {group: dict(counts) for group, counts in self.statistics.items()}
        image = np.full(SHAPE, len(self.asked) % 256, np.uint8)
        return Frame(image, self.done, statistics, dict(self.state))
