"""The state of one world as a pytree, and the settings that fix its shapes and constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class WorldSettings:
    """Constants of a world; every field is an override of `make`.

    Attributes:
      size: blocks along x and along z, the invisible wall included.
      height: blocks along y.
      hills: greatest difference of the ground's height, blocks; 0 is flat.
      tree_spacing: side of the square cells that hold at most one tree, blocks.
      tree_chance: that a cell holds a tree, 0..1.
      spawn_distance: from the nearest tree's trunk to the player at first, blocks.
      spawn_turn: the player first looks at most this far beside that tree, degrees.
      frame_skip: ticks (of 1/20 s) an action lasts.
      break_speed_multiplier: on the speed of breaking blocks; 1 is Minecraft's.
      time_limit: steps (not ticks) after which an episode is truncated.
      view_distance: voxel borders a ray crosses at most; the fog hides what lies behind.
    """

    size: int = 48
    height: int = 24
    hills: int = 3
    tree_spacing: int = 6
    tree_chance: float = 0.7
    spawn_distance: float = 3.5
    spawn_turn: float = 45.0
    frame_skip: int = 1
    break_speed_multiplier: float = 1.0
    time_limit: int = 1200
    view_distance: int = 40


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Player:
    """
    Attributes:
      position: float32 [3], blocks: x east, y up, z south; the middle of the feet.
      velocity: float32 [3], blocks per tick.
      yaw: float32 [], degrees; 0 looks south (+z), 90 west (-x).
      pitch: float32 [], degrees; positive looks down.
      on_ground: bool [].
      sprinting: bool [].
      jump_ticks: int32 [], until a held jump key jumps again.
    """

    position: Any
    velocity: Any
    yaw: Any
    pitch: Any
    on_ground: Any
    sprinting: Any
    jump_ticks: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Breaking:
    """
    Attributes:
      target: int32 [3], the block being broken.
      progress: float32 [], 0..1.
      delay: int32 [], ticks until the next block can be begun.
    """

    target: Any
    progress: Any
    delay: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """
    Attributes:
      blocks: uint8 [x, y, z], ids of `blocks`.
      player: the player.
      breaking: the block under attack.
      steps: int32 [], of this episode.
      mine_block: int32 [block], blocks broken in this episode.
      pickup: int32 [block], items that went to the inventory in this episode.
    """

    blocks: Any
    player: Player
    breaking: Breaking
    steps: Any
    mine_block: Any
    pickup: Any
