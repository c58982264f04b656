"""One tick of 1/20 s: what happens in a world, in Minecraft's order."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minestudio_jax.envs.tasks import DAY_TICKS, Task
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import commands, crafting, hands, items, mining, physics, survival, terrain
from minestudio_jax.envs.voxel import drops as lying
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import mobs as creatures
from minestudio_jax.envs.voxel.clearance import after_breaking, after_placing
from minestudio_jax.envs.voxel.raycast import cast, look_direction
from minestudio_jax.envs.voxel.state import Player, State, Statistics, WorldSettings
from minestudio_jax.envs.voxel.statistics import CUSTOM, counted

GOAL_RADIUS = 1.6  # blocks
_STRIDES = 16  # more than the borders that a ray of 4.5 blocks crosses


class Rules(NamedTuple):
    """What is fixed while a world is compiled; what a task cannot need costs nothing.

    Attributes:
      task, settings: of the world.
      can_use, can_throw: the action set has the keys for it, and thrown items can lie about.
    """

    task: Task
    settings: WorldSettings
    can_use: bool
    can_throw: bool

    @property
    def has_mobs(self) -> bool:
        return any(group.number for group in self.task.mobs) or commands.summons(self.task.commands) > 0

    @property
    def has_water(self) -> bool:
        return terrain.BIOMES[self.settings.biome].water > 0


def tick(rules: Rules, state: State, controls: physics.Controls) -> State:
    """The world after one tick with these keys."""
    # One for what comes later, five for this tick.
    keys = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(state.key), 6))
    yaw, pitch = physics.turn(state.player, controls)
    player = dataclasses.replace(state.player, yaw=yaw, pitch=pitch, sneaking=controls.sneak)
    selected = jnp.where(controls.hotbar >= 0, controls.hotbar, state.inventory.selected)
    state = dataclasses.replace(
        state,
        player=player,
        inventory=dataclasses.replace(state.inventory, selected=selected),
        key=keys[0],
    )
    state = _with_hands(rules, keys, state, controls)
    if rules.task.crafting:
        state = _crafted(state, controls)
    state = _moved(rules, keys, state, controls)
    state = _places(rules, state)
    if rules.settings.day_cycle:
        state = dataclasses.replace(state, time=(state.time + 1) % DAY_TICKS)
    return state


def _key(keys: jax.Array, number: int) -> jax.Array:
    return jax.random.wrap_key_data(keys[number])


def _with_hands(rules: Rules, keys: jax.Array, state: State, controls: physics.Controls) -> State:
    """Attack, use and throw away, along one line of sight."""
    player = state.player
    look = look_direction(player.yaw, player.pitch)
    sight = cast(state.blocks, state.clearance, physics.eye(player), *look, _STRIDES)
    attacking = controls.attack & (state.hands.miss_ticks <= 0)
    swings = jnp.bool_(False)
    if rules.has_mobs:
        blow = hands.strike(
            player, look, sight, state.mobs, state.inventory.held, state.hands, attacking, rules.settings.attack_edge
        )
        swings = blow.swings
        attacking = attacking & ~swings
        state = _after_blow(rules, keys, state, blow)

    in_air = jnp.where(player.on_ground, 1.0, 0.2)
    slowed = in_air
    if rules.has_water:
        under = physics.block_at(state.blocks, physics.eye(player)) == b.WATER
        slowed = in_air * jnp.where(under, 0.2, 1.0)
    mined = mining.attack(
        state.blocks, sight, state.breaking, attacking, state.inventory.held, slowed,
        rules.settings.break_speed_multiplier,
    )  # fmt: skip
    broken = mined.broken != b.AIR
    statistics = counted(state.statistics, "mine_block", mined.broken, broken)
    inventory, worn_out = inv.wear_held(state.inventory, broken.astype(jnp.int32))
    statistics = counted(statistics, "break_item", worn_out, worn_out != items.NONE)
    state = dataclasses.replace(
        state,
        blocks=mined.blocks,
        clearance=after_breaking(state.clearance, mined.breaking.target, broken),
        breaking=mined.breaking,
        inventory=inventory,
        statistics=statistics,
        hands=hands.after_attacking(state.hands, sight, controls.attack, swings, rules.settings.attack_edge),
    )
    item, count = loot(_key(keys, 1), mined.broken)
    middle = mined.breaking.target.astype(jnp.float32) + jnp.array([0.5, 0.25, 0.5])
    state = _dropped(rules, _key(keys, 2), state, item, jnp.where(mined.harvested, count, 0), middle)
    if rules.can_use:
        used = hands.use(
            state.blocks, player, look, sight, state.inventory, state.vitals, state.hands, controls.use & ~broken
        )
        state = dataclasses.replace(
            state,
            blocks=used.blocks,
            clearance=after_placing(state.clearance, used.cell, used.places),
            inventory=used.inventory,
            vitals=used.vitals,
            hands=used.hands,
            statistics=counted(state.statistics, "use_item", used.item, used.item != items.NONE),
        )
    if rules.can_throw:
        thrown = hands.throw(player, look, state.inventory, state.hands, controls.drop)
        thrown_one = (thrown.item != items.NONE).astype(jnp.int32)
        state = dataclasses.replace(
            state,
            inventory=thrown.inventory,
            hands=thrown.hands,
            drops=lying.throw(
                state.drops, thrown.item, thrown_one, thrown.position, thrown.velocity, lying.THROWN_DELAY_TICKS
            ),
            statistics=counted(state.statistics, "drop", thrown.item, thrown_one),
        )
    return state


def loot(key: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Item and count, int32 [] each, that a broken block gives; now and then something rare."""
    which, how_many = jax.random.split(key)
    way = jnp.argmax(jax.random.uniform(which) < jnp.asarray(items.LOOT_UP_TO)[block])
    least, most = jnp.asarray(items.LOOT_LEAST)[block, way], jnp.asarray(items.LOOT_MOST)[block, way]
    item = jnp.asarray(items.LOOT_ITEM)[block, way]
    return item, jnp.where(item != items.NONE, jax.random.randint(how_many, (), least, most + 1), 0)


def _after_blow(rules: Rules, keys: jax.Array, state: State, blow: hands.Struck) -> State:
    """Counts a hit; a dead mob leaves what it drops."""
    killed = blow.killed > 0
    statistics = _custom(state.statistics, "damage_dealt", jnp.round(10 * blow.damage).astype(jnp.int32))
    statistics = counted(statistics, "kill_entity", blow.killed, killed)
    statistics = _custom(statistics, "mob_kills", killed)
    uses = jnp.where(jnp.asarray(items.TOOL)[state.inventory.held] == b.SWORD, 1, 2)
    inventory, worn_out = inv.wear_held(state.inventory, jnp.where(blow.damage > 0, uses, 0))
    statistics = counted(statistics, "break_item", worn_out, worn_out != items.NONE)
    state = dataclasses.replace(state, mobs=blow.mobs, statistics=statistics, inventory=inventory)
    for slot in range(creatures.MAX_DROPS):
        key = jax.random.fold_in(_key(keys, 3), slot)
        least, most = jnp.asarray(creatures.DROP_LEAST)[:, slot], jnp.asarray(creatures.DROP_MOST)[:, slot]
        count = jnp.where(killed, _between(key, least, most, blow.killed), 0)
        item = jnp.asarray(creatures.DROP_ITEM)[blow.killed, slot]
        state = _dropped(rules, key, state, item, count, blow.at)
    return state


def _between(key: jax.Array, least: jax.Array, most: jax.Array, index: jax.Array) -> jax.Array:
    """A number from least[index] to most[index], int32 []."""
    return jax.random.randint(key, (), least[index], most[index] + 1)


def _dropped(
    rules: Rules, key: jax.Array, state: State, item: jax.Array, count: jax.Array, position: jax.Array
) -> State:
    """Lays items down, or puts them straight into the inventory."""
    if rules.settings.instant_pickup:
        inventory, taken = inv.add(state.inventory, item, count)
        return dataclasses.replace(
            state, inventory=inventory, statistics=counted(state.statistics, "pickup", item, taken)
        )
    return dataclasses.replace(state, drops=lying.drop(key, state.drops, item, count, position))


def _crafted(state: State, controls: physics.Controls) -> State:
    inventory, item, made = crafting.craft(state.blocks, state.player.position, state.inventory, controls.craft)
    return dataclasses.replace(
        state, inventory=inventory, statistics=counted(state.statistics, "craft_item", item, made)
    )


def _moved(rules: Rules, keys: jax.Array, state: State, controls: physics.Controls) -> State:
    """Everything moves, and what that does to the player."""
    before = state.player
    player = physics.move(state.blocks, before, controls, survival.may_sprint(state.vitals))
    jumped = (player.jump_ticks == physics.JUMP_COOLDOWN) & (before.jump_ticks != physics.JUMP_COOLDOWN)
    vitals = dataclasses.replace(state.vitals, hurt_ticks=jnp.maximum(state.vitals.hurt_ticks - 1, 0))
    damage = survival.fall_damage(before, player)
    if rules.settings.hunger:
        vitals, starving = survival.hunger(vitals, before, player, jumped)
        damage = jnp.maximum(damage, starving)
    if rules.has_water:
        vitals, drowning = survival.breathe(state.blocks, player, vitals)
        damage = jnp.maximum(damage, drowning)
    mobs = state.mobs
    if rules.has_mobs:
        mobs, bite = creatures.move(_key(keys, 4), state.blocks, player, mobs)
        mobs = creatures.burn(state.blocks, mobs, state.time)
        strikes = (bite.damage > 0) & (vitals.hurt_ticks <= 0)
        player = _pushed(player, bite.origin, strikes)
        damage = jnp.maximum(damage, bite.damage)
    vitals, taken = survival.hurt(vitals, damage)
    statistics = _custom(state.statistics, "jump", jumped)
    statistics = _custom(statistics, "damage_taken", jnp.round(10 * taken).astype(jnp.int32))
    statistics = _custom(statistics, "deaths", (taken > 0) & (vitals.health <= 0))
    drops, inventory = state.drops, state.inventory
    if not rules.settings.instant_pickup:
        drops = lying.move(state.blocks, drops)
        drops, inventory, statistics = lying.pick_up(drops, player, inventory, statistics)
    return dataclasses.replace(
        state, player=player, vitals=vitals, mobs=mobs, drops=drops, inventory=inventory, statistics=statistics
    )


def _pushed(player: Player, origin: jax.Array, strikes: jax.Array) -> Player:
    """Knocked back by a blow from `origin`, float32 [3]."""
    away = (player.position - origin).at[1].set(0.0)
    away = away / jnp.maximum(jnp.linalg.norm(away), 1e-3)
    velocity = 0.5 * player.velocity + creatures.KNOCKBACK * away.at[1].set(1.0)
    return dataclasses.replace(
        player,
        velocity=jnp.where(strikes, velocity, player.velocity),
        on_ground=player.on_ground & ~strikes,
    )


def _places(rules: Rules, state: State) -> State:
    """Counts height gained and the way to the goal, each block once."""
    rules_about = {name for term in rules.task.reward for name in term.objects}
    rules_about |= set(rules.task.success.objects if rules.task.success else ())
    statistics, position = state.statistics, state.player.position
    if "climb_one_block" in rules_about:
        height = jnp.floor(position[1] - state.start[1] + 1e-3).astype(jnp.int32)
        statistics = _raised(statistics, "climb_one_block", jnp.where(state.player.on_ground, height, 0))
    if rules_about & {"approach_one_block", "reach_goal"}:
        aside = jnp.array([0, 2])
        whole = jnp.linalg.norm(state.goal[aside] - state.start[aside])
        left = jnp.linalg.norm(state.goal[aside] - position[aside])
        statistics = _raised(statistics, "approach_one_block", jnp.floor(whole - left).astype(jnp.int32))
        statistics = _raised(statistics, "reach_goal", (left < GOAL_RADIUS).astype(jnp.int32))
    return dataclasses.replace(state, statistics=statistics)


def _custom(statistics: Statistics, name: str, amount: jax.Array) -> Statistics:
    return counted(statistics, "custom", CUSTOM.index(name), amount)


def _raised(statistics: Statistics, name: str, to: jax.Array) -> Statistics:
    """The count of a custom event raised to a number, never lowered."""
    return _custom(statistics, name, jnp.maximum(to - statistics.custom[CUSTOM.index(name)], 0))
