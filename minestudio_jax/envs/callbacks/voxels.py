"""Blocks around the player."""

from __future__ import annotations

from minestudio_jax.envs.minecraft import Callback, Keys

AROUND = (-7, 7, -7, 7, -7, 7)  # least and greatest distance along x, y and z, blocks


class Voxels(Callback):
    """Asks for the blocks around the player in every step: frames then have "voxels" in their state."""

    def before_step(self, keys: Keys) -> Keys:
        return {**keys, "voxels": list(AROUND)}
