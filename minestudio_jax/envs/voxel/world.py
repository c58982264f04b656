"""World: reset, step and render of one task, pure functions of the state."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minestudio_jax.envs import actions
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import mining, physics, terrain
from minestudio_jax.envs.voxel.render import render
from minestudio_jax.envs.voxel.state import Breaking, Player, State, WorldSettings
from minestudio_jax.envs.voxel.tasks import TASKS, Task

PRESETS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "toy": {"frame_skip": 4, "break_speed_multiplier": 10.0, "time_limit": 100},
}
ACTION_SETS = ("discrete", "vpt")
_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")


class Timestep(NamedTuple):
    """What a step gives besides the state.

    Attributes:
      reward: float32 [].
      terminated, truncated: bool [].
      info: name -> array; "mine_block" and "pickup" are int32 [block], counts of this episode.
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class World:
    """One task in one kind of world.

    Attributes:
      task: rewards and action set.
      settings: sizes and constants.
      action_set: "discrete" or "vpt".
    """

    task: Task
    settings: WorldSettings
    action_set: str

    @property
    def action_spec(self) -> dict[str, int]:
        """Component -> number of choices: {"choice": n}, or VPT's buttons and camera."""
        if self.action_set == "vpt":
            return dict(actions.VPT_ACTION_SPEC)
        return {"choice": len(self.task.actions.names)}

    def reset(self, key: jax.Array) -> State:
        """A new world and a new episode in it."""
        blocks, position, yaw = terrain.generate(key, self.settings)
        nothing = jnp.zeros(b.NUM_BLOCKS, jnp.int32)
        return State(
            blocks=blocks,
            player=standing_player(position, yaw),
            breaking=Breaking(jnp.zeros(3, jnp.int32), jnp.float32(0), jnp.int32(0)),
            steps=jnp.int32(0),
            mine_block=nothing,
            pickup=nothing,
        )

    def step(self, state: State, action: dict[str, jax.Array]) -> tuple[State, Timestep]:
        """One agent step: `frame_skip` ticks with the same keys and the same turn in every tick.

        Args:
          state: before.
          action: component -> int32 [1].
        """
        controls = self._controls(action)
        after = lax.fori_loop(0, self.settings.frame_skip, lambda _, s: self._tick(s, controls), state)
        after = dataclasses.replace(after, steps=state.steps + 1)
        mined = (after.mine_block - state.mine_block).astype(jnp.float32)
        timestep = Timestep(
            reward=jnp.dot(mined, self._reward_table()),
            terminated=jnp.bool_(False),
            truncated=after.steps >= self.settings.time_limit,
            info={"mine_block": after.mine_block, "pickup": after.pickup},
        )
        return after, timestep

    def render(self, state: State, height: int, width: int) -> jax.Array:
        """The player's view, uint8 [height, width, 3]."""
        return render(state, height, width, self.settings.view_distance)

    def _tick(self, state: State, controls: physics.Controls) -> State:
        yaw, pitch = physics.turn(state.player, controls)
        player = dataclasses.replace(state.player, yaw=yaw, pitch=pitch)
        mined = mining.attack(state.blocks, player, state.breaking, controls, self.settings.break_speed_multiplier)
        player = physics.move(mined.blocks, player, controls)
        count = (jnp.arange(b.NUM_BLOCKS) == mined.broken) & (mined.broken != b.AIR)
        # Drops go straight to the inventory.
        item = jnp.asarray(b.DROP)[mined.broken]
        picked = (jnp.arange(b.NUM_BLOCKS) == item) & (item != b.AIR)
        return dataclasses.replace(
            state,
            blocks=mined.blocks,
            player=player,
            breaking=mined.breaking,
            mine_block=state.mine_block + count,
            pickup=state.pickup + picked,
        )

    def _controls(self, action: dict[str, jax.Array]) -> physics.Controls:
        if self.action_set == "vpt":
            buttons, camera = action["buttons"][0], action["camera"][0]
        else:
            choice = action["choice"][0]
            buttons = jnp.asarray(self.task.actions.buttons)[choice]
            camera = jnp.asarray(self.task.actions.camera)[choice]
        keys = jnp.asarray(_KEY_TABLE)[buttons]
        turn = jnp.where(
            jnp.asarray(actions.CAMERA_ON_TABLE)[buttons],
            jnp.asarray(actions.CAMERA_DEG_TABLE, jnp.float32)[camera],
            0.0,
        )
        return physics.Controls(**dict(zip(_KEYS, keys, strict=True)), pitch=turn[0], yaw=turn[1])

    def _reward_table(self) -> np.ndarray:
        table = np.zeros(b.NUM_BLOCKS, np.float32)
        for block, reward in self.task.mine_block.items():
            table[block] = reward
        return table


_KEY_TABLE = actions.KEY_TABLE[:, [actions.BUTTONS.index(key) for key in _KEYS]].astype(bool)


def standing_player(position: jax.Array, yaw: jax.Array) -> Player:
    """A player at rest on the ground, looking straight ahead."""
    return Player(
        position=position,
        velocity=jnp.array([0.0, -physics.GRAVITY * physics.VERTICAL_DRAG, 0.0], jnp.float32),
        yaw=yaw,
        pitch=jnp.float32(0),
        on_ground=jnp.bool_(True),
        sprinting=jnp.bool_(False),
        jump_ticks=jnp.int32(0),
    )


def make(task: str = "chop_tree", preset: str = "toy", action_set: str = "discrete", **overrides: Any) -> World:
    """A world for a task.

    Args:
      task: its name.
      preset: "toy" (actions last 4 ticks, blocks break 10 times as fast, 100 steps) or "vanilla".
      action_set: "discrete" for the task's own, "vpt" for VPT's buttons and camera.
      **overrides: fields of WorldSettings.
    Raises:
      ValueError: one of them is unknown; names the nearest.
    """
    _check("env.task", task, TASKS)
    _check("env.preset", preset, PRESETS)
    _check("env.action_set", action_set, ACTION_SETS)
    fields = {f.name: f for f in dataclasses.fields(WorldSettings)}
    for name, value in overrides.items():
        _check("env.options", name, fields)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ValueError(f"env.options: {name}={value!r} is not a number of 0 or more")
    settings = WorldSettings(**{**PRESETS[preset], **overrides})
    for name, least in (("size", 24), ("height", 20), ("tree_spacing", 4), ("frame_skip", 1), ("time_limit", 1)):
        if not getattr(settings, name) >= least:
            raise ValueError(f"env.options: {name}={getattr(settings, name)} is below its least value {least}")
    return World(TASKS[task], settings, action_set)


def _check(setting: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{setting}: there is no {word!r}; {hint}known are {', '.join(known)}")
