"""The state of one world as a pytree, and the settings that fix its shapes and constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from minestudio_jax.envs.voxel.inventory import Inventory


@dataclass(frozen=True)
class WorldSettings:
    """Constants of a world; every field is an override of `make`. The defaults are Minecraft's where it has one.

    Attributes:
      size: blocks along x and along z, the invisible wall included.
      height: blocks along y.
      biome: one of `terrain.BIOMES`.
      ground: height of the lowest ground, blocks; what lies below is stone, with caves and ores if there is room.
      hills: greatest difference of the ground's height, blocks; 0 is flat. Negative: the biome's own.
      tree_spacing: side of the square cells that hold at most one tree, blocks.
      tree_chance: that a cell holds a tree, 0..1. Negative: the biome's own.
      caves: whether the stone has caves.
      ores: how many ores there are, as a factor on vanilla's density; 0 is none.
      spawn_distance: from the nearest tree's trunk to the player at first, blocks.
      spawn_turn: the player first looks at most this far beside that tree, degrees.
      spawn_pitch: how far down the player first looks, degrees; the mobs about are lower than his eyes.
      goal_distance: from the player's first place to a white pillar, blocks; 0: there is none.
      frame_skip: ticks (of 1/20 s) an action lasts.
      break_speed_multiplier: on the speed of breaking blocks; 1 is Minecraft's.
      attack_edge: as in Minecraft a mob is hit only when the attack key goes down, and after a blow into the air
        attacking is of no use for half a second or until the key is let go; else a mob is hit while the key is held.
      instant_pickup: what a broken block drops goes straight into the inventory; else it lies about as an item.
      hunger: moving and healing make hungry.
      day_cycle: time goes on; else it stays as it is.
      start_time: ticks since dawn, 0..23999; 6000 is noon, 18000 midnight.
      hud: hotbar, hearts and hunger in the picture.
      time_limit: steps (not ticks) after which an episode is truncated; 0: the task's own limit.
      ray_strides: after so many strides through air a ray has hit nothing. With 24, of the pixels whose block is not
        all in the fog 0.3 % miss it, and none within 15 blocks.
    """

    size: int = 48
    height: int = 24
    biome: str = "plains"
    ground: int = 6
    hills: int = -1
    tree_spacing: int = 6
    tree_chance: float = -1.0
    caves: bool = True
    ores: float = 1.0
    spawn_distance: float = 3.5
    spawn_turn: float = 45.0
    spawn_pitch: float = 0.0
    goal_distance: float = 0.0
    frame_skip: int = 1
    break_speed_multiplier: float = 1.0
    attack_edge: bool = True
    instant_pickup: bool = False
    hunger: bool = True
    day_cycle: bool = True
    start_time: int = 1000
    hud: bool = True
    time_limit: int = 0
    ray_strides: int = 24


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
      sneaking: bool [].
      jump_ticks: int32 [], until a held jump key jumps again.
      fall_distance: float32 [], blocks fallen since the last ground.
    """

    position: Any
    velocity: Any
    yaw: Any
    pitch: Any
    on_ground: Any
    sprinting: Any
    sneaking: Any
    jump_ticks: Any
    fall_distance: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vitals:
    """
    Attributes:
      health: float32 [], half hearts, 0..20; 0 is death.
      food: int32 [], half drumsticks, 0..20.
      saturation, exhaustion: float32 [], hidden parts of hunger.
      air: int32 [], ticks of breath left.
      hurt_ticks: int32 [], until the next hit counts.
      heal_ticks: int32 [], since the last healing or starving.
    """

    health: Any
    food: Any
    saturation: Any
    exhaustion: Any
    air: Any
    hurt_ticks: Any
    heal_ticks: Any


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
class Hands:
    """What attack and use remember from tick to tick.

    Attributes:
      attack_was_down, drop_was_down: bool [], in the tick before.
      use_delay: int32 [], ticks until a held use key places the next block.
      eat_ticks: int32 [], for which the food in the hand has been eaten.
      swing_ticks: int32 [], since the last hit; a full blow needs the weapon's pause.
      miss_ticks: int32 [], for which attacking does nothing after a blow into the air.
    """

    attack_was_down: Any
    drop_was_down: Any
    use_delay: Any
    eat_ticks: Any
    swing_ticks: Any
    miss_ticks: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mobs:
    """M slots.

    Attributes:
      kind: int32 [M], index into `mobs.KINDS`; 0 is an empty slot.
      position, velocity: float32 [M, 3], as the player's.
      yaw: float32 [M], degrees.
      health: float32 [M].
      on_ground: bool [M].
      hurt_ticks: int32 [M], until the next hit counts; the picture is red meanwhile.
      burn_ticks: int32 [M], until the sun can harm it again; the picture is red in the first half.
      panic_ticks: int32 [M], for which it runs away.
      walk_ticks: int32 [M], for which it goes on walking.
      attack_ticks: int32 [M], until it can hit again.
    """

    kind: Any
    position: Any
    velocity: Any
    yaw: Any
    health: Any
    on_ground: Any
    hurt_ticks: Any
    burn_ticks: Any
    panic_ticks: Any
    walk_ticks: Any
    attack_ticks: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drops:
    """D items that lie about.

    Attributes:
      item: int32 [D]; items.NONE is an empty slot.
      count: int32 [D].
      position, velocity: float32 [D, 3].
      age: int32 [D], ticks.
    """

    item: Any
    count: Any
    position: Any
    velocity: Any
    age: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """Counts of this episode, under Minecraft's names of the events.

    Attributes:
      mine_block: int32 [block].
      pickup, drop, craft_item, use_item, break_item: int32 [item].
      kill_entity: int32 [kind of mob].
      custom: int32 [len(statistics.CUSTOM)].
    """

    mine_block: Any
    pickup: Any
    drop: Any
    craft_item: Any
    use_item: Any
    break_item: Any
    kill_entity: Any
    custom: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """
    Attributes:
      blocks: uint8 [x, y, z], ids of `blocks`.
      clearance: uint8 [x, y, z], of these blocks; see `clearance`.
      player, vitals, inventory, breaking, hands: the player's.
      mobs, drops: what else moves.
      time: int32 [], ticks since a dawn, 0..23999.
      steps: int32 [], of this episode.
      statistics: of this episode.
      paid: int32 [reward terms], how many times each has been paid.
      start: float32 [3], the player's first position.
      goal: float32 [3], where `navigate` goes; `start` without a goal.
      key: uint32 [2], raw PRNG key of everything that happens by chance from here on.
    """

    blocks: Any
    clearance: Any
    player: Player
    vitals: Vitals
    inventory: Inventory
    breaking: Breaking
    hands: Hands
    mobs: Mobs
    drops: Drops
    time: Any
    steps: Any
    statistics: Statistics
    paid: Any
    start: Any
    goal: Any
    key: Any
