"""The player's death."""

from __future__ import annotations

import dataclasses

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator


class Death(Callback):
    """Terminates the episode when the player has died, also where the simulator would have him rise again."""

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        dead = outcome.frame.state.get("is_alive", True) is False
        return dataclasses.replace(outcome, terminated=outcome.terminated or dead)
