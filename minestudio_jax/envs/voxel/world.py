"""World: reset, step and render of one task, pure functions of the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import REWARD_PREFIX
from minestudio_jax.envs.nearest import did_you_mean
from minestudio_jax.envs.tasks import GOAL_EVENTS, Task, events_of
from minestudio_jax.envs.voxel import commands, crafting, physics, rewards, survival, terrain
from minestudio_jax.envs.voxel import drops as lying
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import mobs as creatures
from minestudio_jax.envs.voxel.action_sets import ACTION_SETS
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.hands import resting
from minestudio_jax.envs.voxel.render import render
from minestudio_jax.envs.voxel.state import Breaking, Player, State, WorldSettings
from minestudio_jax.envs.voxel.statistics import nothing_yet
from minestudio_jax.envs.voxel.tick import Rules, tick
from minestudio_jax.utils.task_files import load_task, task_names

PRESETS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "toy": {
        "frame_skip": 4,
        "break_speed_multiplier": 10.0,
        "time_limit": 100,
        "attack_edge": False,
        "instant_pickup": True,
        "hunger": False,
        "caves": False,
        "ores": 0.0,
        "day_cycle": False,
        "hud": False,
    },
}
ACTION_FACES = ("discrete", "vpt", "minerl")
DROP_SLOTS = 16
_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack", "use", "drop")
_HOTBAR = tuple(f"hotbar.{i}" for i in range(1, 10))


class Timestep(NamedTuple):
    """What a step gives besides the state.

    Attributes:
      reward: float32 [].
      terminated: bool [], the player died, or the task ends with its success.
      truncated: bool [], the time limit is reached.
      info: name -> array: the episode's statistics (int32 [names], see `statistics.NAMES`), "success" bool [],
        "health" float32 [], "food" int32 [], and "reward/<term>" float32 [], what each term of the task's reward has
        paid in the episode.
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class World:
    """One task in one kind of world.

    Attributes:
      task: rewards, start and action set.
      settings: sizes and constants.
      action_set: "discrete", "vpt" or "minerl".
    """

    task: Task
    settings: WorldSettings
    action_set: str

    @property
    def action_spec(self) -> dict[str, int]:
        """Component -> number of choices: {"choice": n}, or VPT's buttons and camera, and "craft" where there is any.

        MineRL's actions are keys and degrees; they have no such spec.

        Raises:
          ValueError: the action set is "minerl".
        """
        if self.action_set == "minerl":
            raise ValueError("env.action_set='minerl' is for programs that step the world themselves: use vpt")
        if self.action_set == "vpt":
            return {**actions.VPT_ACTION_SPEC, **({"craft": crafting.NUM_CRAFT} if self.task.crafting else {})}
        return {"choice": len(self.choices)}

    @property
    def action_masks(self) -> dict[str, np.ndarray]:
        """Component -> uint8 [choices], 0 where the task rules a choice out; empty if the policy shall see no mask."""
        if self.task.mask is None:
            return {}
        masks = actions.action_masks(self.task.mask)
        if self.action_set != "discrete":
            return masks
        choices = ACTION_SETS[self.task.actions].actions
        return {"choice": masks["buttons"][choices.buttons] & masks["camera"][choices.camera]}

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the task's own choices."""
        return ACTION_SETS[self.task.actions].names

    def reset(self, key: jax.Array) -> State:
        """A new world and a new episode in it."""
        task = self.task
        terrain_key, mob_key, key = jax.random.split(key, 3)
        if task.spawn:
            place = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(task.spawn))
            terrain_key = _seeded(terrain_key, task, place)
        land = terrain.generate(terrain_key, self.settings)
        position = _spawned(land.position, task, place) if task.spawn else land.position
        state = State(
            blocks=land.blocks,
            clearance=clearance_of(land.blocks),
            player=standing_player(position, land.yaw, self.settings.spawn_pitch),
            vitals=survival.healthy(),
            inventory=inv.drawn_inventory(task.inventory, jax.random.fold_in(key, 2)),
            breaking=Breaking(jnp.zeros(3, jnp.int32), jnp.float32(0), jnp.int32(0)),
            hands=resting(),
            mobs=creatures.spawn(mob_key, land.blocks, land.ground, position, task.mobs),
            drops=lying.none(0 if self.settings.instant_pickup else DROP_SLOTS),
            time=jnp.int32(self.settings.start_time),
            steps=jnp.int32(0),
            statistics=nothing_yet(),
            paid=jnp.zeros(len(task.reward), jnp.int32),
            start=position,
            goal=land.goal,
            key=jax.random.key_data(key),
        )
        if not task.commands:
            return state
        state = commands.with_mob_slots(state, commands.summons(task.commands))
        for command in task.commands:
            state = commands.execute(state, self.settings, command)
        return dataclasses.replace(state, statistics=nothing_yet(), start=state.player.position)

    def step(self, state: State, action: dict[str, jax.Array]) -> tuple[State, Timestep]:
        """One agent step: `frame_skip` ticks with the same keys and the same turn in every tick.

        After the tick that the player dies in nothing is pressed, counted or paid any more.

        Args:
          state: before.
          action: component -> int32 [1]. For "minerl": each of `actions.BUTTONS` -> int [], "camera" -> float32 [2]
            (pitch and yaw, degrees), and "craft" -> int [] where there is any; what is missing is not pressed.
        """
        controls = self._controls(action)
        nothing = self._pressed(jnp.zeros(len(_KEYS) + len(_HOTBAR), bool), jnp.zeros(2), jnp.int32(0))
        can_throw = self._has_key("drop") and not self.settings.instant_pickup
        rules = Rules(self.task, self.settings, self._has_key("use"), can_throw)
        no_reward = jnp.zeros(len(self.task.reward), jnp.float32)

        def one(number: int, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, earned = carry
            alive = state.vitals.health > 0
            # Crafting is done once, however long the action lasts.
            now = controls._replace(craft=jnp.where(number == 0, controls.craft, 0))
            after = tick(rules, state, _chosen(alive, now, nothing))
            after = dataclasses.replace(after, statistics=_chosen(alive, after.statistics, state.statistics))
            terms, paid = rewards.paid(self.task, state.statistics, after.statistics, state.paid)
            return dataclasses.replace(after, paid=paid), earned + terms

        after, earned = lax.fori_loop(0, self.settings.frame_skip, one, (state, no_reward))
        after = dataclasses.replace(after, steps=state.steps + 1)
        sums = after.paid * rewards.amounts(self.task)
        success = rewards.succeeded(self.task, after.statistics)
        ends = self.task.success is not None and self.task.success.ends
        timestep = Timestep(
            reward=jnp.sum(earned),
            terminated=(after.vitals.health <= 0) | (success & ends),
            truncated=after.steps >= self.settings.time_limit,
            info={
                **{f.name: getattr(after.statistics, f.name) for f in dataclasses.fields(after.statistics)},
                **({} if self.task.success is None else {"success": success}),
                "health": after.vitals.health,
                "food": after.vitals.food,
                **{f"{REWARD_PREFIX}{term.name}": paid for term, paid in zip(self.task.reward, sums, strict=True)},
            },
        )
        return after, timestep

    def render(self, state: State, height: int, width: int) -> jax.Array:
        """The player's view, uint8 [height, width, 3]."""
        return render(state, height, width, self.settings)

    def _has_key(self, name: str) -> bool:
        if name in (self.task.mask or ()):
            return False
        keys = actions.KEY_TABLE[ACTION_SETS[self.task.actions].actions.buttons, actions.BUTTONS.index(name)]
        return self.action_set != "discrete" or bool(keys.any())

    def _controls(self, action: dict[str, jax.Array]) -> physics.Controls:
        if self.action_set == "minerl":
            keys = [jnp.asarray(action.get(key, 0)).reshape(()).astype(bool) for key in (*_KEYS, *_HOTBAR)]
            camera = jnp.asarray(action.get("camera", jnp.zeros(2)), jnp.float32).reshape(2)
            return self._pressed(jnp.stack(keys), camera, jnp.asarray(action.get("craft", 0)).reshape(()))
        craft = jnp.int32(0)
        if self.action_set == "vpt":
            buttons, bins = action["buttons"][0], action["camera"][0]
            if self.task.crafting:
                craft = action["craft"][0]
        else:
            choice, choices = action["choice"][0], ACTION_SETS[self.task.actions]
            buttons = jnp.asarray(choices.actions.buttons)[choice]
            bins = jnp.asarray(choices.actions.camera)[choice]
            craft = jnp.asarray(choices.craft)[choice]
        camera_is_on = jnp.asarray(actions.CAMERA_ON_TABLE)[buttons]
        turn = jnp.where(camera_is_on, jnp.asarray(actions.CAMERA_DEG_TABLE, jnp.float32)[bins], 0.0)
        return self._pressed(jnp.asarray(_KEY_TABLE)[buttons], turn, craft)

    def _pressed(self, keys: jax.Array, turn: jax.Array, craft: jax.Array) -> physics.Controls:
        """From keys bool [10 + 9], turn float32 [2] in degrees and craft action int32 []; masked keys are let go."""
        ruled_out = self.task.mask or ()
        keys = keys & np.array([key not in ruled_out for key in (*_KEYS, *_HOTBAR)])
        turn = jnp.zeros_like(turn) if "camera" in ruled_out else turn
        hotbar = keys[len(_KEYS) :]
        slot = jnp.max(jnp.where(hotbar, jnp.arange(len(_HOTBAR)), -1))  # of several the last counts
        pressed = dict(zip(_KEYS, keys[: len(_KEYS)], strict=True))
        return physics.Controls(**pressed, hotbar=slot, craft=craft, pitch=turn[0], yaw=turn[1])


def _chosen(condition: jax.Array, one: Any, other: Any) -> Any:
    """The pytree `one` where `condition`, bool [], and `other` where not."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


_KEY_TABLE = actions.KEY_TABLE[:, [actions.BUTTONS.index(key) for key in (*_KEYS, *_HOTBAR)]].astype(bool)


def _seeded(key: jax.Array, task: Task, place: jax.Array) -> jax.Array:
    """Key of the land: of the place's seed if it has one."""
    seeds = jnp.array([one.seed or 0 for one in task.spawn], jnp.int32)
    has_seed = jnp.array([one.seed is not None for one in task.spawn])
    keys = jax.random.key_data(jax.random.key(seeds[place])), jax.random.key_data(key)
    return jax.random.wrap_key_data(jnp.where(has_seed[place], *keys))


def _spawned(position: jax.Array, task: Task, place: jax.Array) -> jax.Array:
    """The player's first position, float32 [3]: the place's own if it has one."""
    positions = jnp.array([one.position or (0.0, 0.0, 0.0) for one in task.spawn], jnp.float32)
    has_position = jnp.array([one.position is not None for one in task.spawn])
    return jnp.where(has_position[place], positions[place], position)


def standing_player(position: jax.Array, yaw: jax.Array, pitch: float = 0.0) -> Player:
    """A player at rest on the ground; without a pitch he looks straight ahead."""
    no = jnp.bool_(False)
    return Player(
        position=position,
        velocity=jnp.array([0.0, -physics.GRAVITY * physics.VERTICAL_DRAG, 0.0], jnp.float32),
        yaw=yaw,
        pitch=jnp.float32(pitch),
        on_ground=jnp.bool_(True),
        sprinting=no,
        sneaking=no,
        jump_ticks=jnp.int32(0),
        fall_distance=jnp.float32(0),
    )


def make(task: str | Task = "chop_tree", preset: str = "toy", action_set: str = "discrete", **overrides: Any) -> World:
    """A world for a task.

    Args:
      task: its name, the path of a task file, or the task itself.
      preset: "toy" (actions last 4 ticks, blocks break 10 times as fast, 100 steps, and so on) or "vanilla".
      action_set: "discrete" for the task's own, "vpt" for VPT's buttons and camera, "minerl" for MineRL's dictionary.
      **overrides: fields of WorldSettings; they win over the task's, which win over the preset's.
    Raises:
      ValueError: one of them is unknown or out of bounds; names the nearest.
    """
    _check("env.preset", preset, PRESETS)
    _check("env.action_set", action_set, ACTION_FACES)
    task = load_task(task) if isinstance(task, str) else task
    settings = {**PRESETS[preset], **_begin_of(task), **task.world, **overrides}
    for name, value in settings.items():
        _check_setting("env.options" if name in overrides else f"task {task.name}: world", name, value)
    rewards.check_task(task)
    _check_what_there_is(task)
    made = WorldSettings(**settings)
    if made.time_limit == 0:
        made = dataclasses.replace(made, time_limit=-(-task.time_limit // made.frame_skip))
    _check_fits(task, made)
    world = World(task, made, action_set)
    _check_begin(world)
    return world


def playable_tasks() -> list[str]:
    """Names of the tasks that come with the package and can be played here; the others are for Minecraft only."""
    playable = []
    for name in task_names():
        try:
            make(name)
        except ValueError:
            continue
        playable.append(name)
    return playable


def _begin_of(task: Task) -> dict[str, Any]:
    """The settings that a task's biome and time stand for."""
    settings: dict[str, Any] = {}
    if task.biome:
        settings["biome"] = terrain.biome_called(task.biome)
        _check(f"task {task.name}: biome", settings["biome"], terrain.BIOMES)
    if task.time is not None:
        settings["start_time"] = task.time
    return settings


def _check_what_there_is(task: Task) -> None:
    """Raises ValueError if the task needs items or mobs that this world does not have."""
    try:
        inv.check_stacks(task.inventory, f"task {task.name}: inventory")
        for group in task.mobs:
            _check(f"task {task.name}: mobs", group.name, creatures.NAMES[1:])
    except ValueError as error:
        raise ValueError(f"{error}; {rewards.FOR_MINECRAFT}") from error


def _check_fits(task: Task, settings: WorldSettings) -> None:
    """Raises ValueError if the task and its world's settings, each fine by itself, do not go together."""
    hills = terrain.greatest_hills(settings)
    least = settings.ground + hills + terrain.HEADROOM
    if settings.height < least:
        raise ValueError(
            f"task {task.name}: height={settings.height} is too low for ground={settings.ground} with hills of "
            f"{hills} blocks in biome={settings.biome!r} and room above: set height={least} or more, or lower ground "
            "and hills"
        )
    for where, event, objects in events_of(task):
        for name in objects:
            if name in GOAL_EVENTS and settings.goal_distance <= 0:
                raise ValueError(
                    f"task {task.name}: {where}: {event} of {name!r} needs a goal to go to, and goal_distance="
                    f"{settings.goal_distance:g} puts none there: set it above 0 in the task's world, or in env.options"
                )
    if ACTION_SETS[task.actions].craft.any() and not task.crafting:
        raise ValueError(
            f"task {task.name}: actions={task.actions!r} has choices that craft, which crafting=false leaves without "
            "effect: set crafting: true, or take another set of actions"
        )


def _check_begin(world: World) -> None:
    """Raises ValueError if the task is to begin as this world cannot."""
    task, settings = world.task, world.settings
    if task.weather not in ("", "clear"):
        raise ValueError(
            f"task {task.name}: weather={task.weather!r}: it is always clear here; {rewards.FOR_MINECRAFT}"
        )
    low = terrain.MARGIN, 1, terrain.MARGIN
    high = settings.size - terrain.MARGIN, settings.height - 2, settings.size - terrain.MARGIN
    for place in task.spawn:
        if place.position and any(not a <= x < b for a, x, b in zip(low, place.position, high, strict=True)):
            raise ValueError(
                f"task {task.name}: spawn={list(place.position)} is outside of this world, which reaches from "
                f"{list(low)} to {list(high)}: move it, or set size and height"
            )
    try:
        if task.commands:
            jax.eval_shape(world.reset, jax.random.key(0))
    except commands.CommandError as error:
        raise ValueError(f"task {task.name}: commands: {error}; {rewards.FOR_MINECRAFT}") from error
    masks = world.action_masks
    if world.action_set == "discrete" and task.mask and not masks["choice"].any():
        raise ValueError(
            f"task {task.name}: mask={list(task.mask)} rules out every choice of actions={task.actions!r}: set "
            "env.action_set=vpt, or take a key out of the mask"
        )


_LEAST = {
    "size": 24, "height": 20, "tree_spacing": 4, "frame_skip": 1, "ground": 4, "hills": -1,
    "tree_chance": -1.0, "spawn_pitch": -90.0,
}  # fmt: skip


def _check_setting(where: str, name: str, value: Any) -> None:
    fields = {f.name: f for f in dataclasses.fields(WorldSettings)}
    _check(where, name, fields)
    if name == "biome":
        _check(f"{where}: biome", value, terrain.BIOMES)
        return
    default = fields[name].default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where}: {name}={value!r} must be true or false")
        return
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and value != int(value)):
        raise ValueError(f"{where}: {name}={value!r} is not {'an integer' if whole else 'a number'}")
    least = _LEAST.get(name, 0)
    if value < least:
        raise ValueError(f"{where}: {name}={value!r} is below its least value {least}")


def _check(setting: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        hint = did_you_mean(word, known)
        raise ValueError(f"{setting}: there is no {word!r}{hint} (known are {', '.join(known)})")
