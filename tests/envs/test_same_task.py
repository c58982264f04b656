"""A task is the same whether the embedded world plays it or callbacks do over a simulator of the game.

Each task that both can play is played through, in such a way that what it pays for happens: in the embedded world, and
then with the same actions through callbacks. Every step must pay, tell and end the same.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from minestudio_jax.envs import actions, voxel
from minestudio_jax.envs.callbacks.for_task import callbacks_for, check_for_minecraft
from minestudio_jax.envs.env import MASK_PREFIX
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.envs.tasks import Task
from minestudio_jax.envs.voxel import crafting, items, physics
from minestudio_jax.envs.voxel import mobs as creatures
from minestudio_jax.envs.voxel.state import State
from minestudio_jax.envs.voxel.statistics import NAMES, as_dict, nothing_yet
from minestudio_jax.envs.voxel.world import playable_tasks
from minestudio_jax.utils.task_files import load_task
from tests.envs.scripted_simulator import ScriptedSimulator
from tests.envs.voxel_simulator import VoxelSimulator, controls

SMALL = {"size": 24, "height": 20, "break_speed_multiplier": 20.0, "attack_edge": False}


class Deed(NamedTuple):
    """What is done in a tick: keys, degrees of pitch and yaw, and an item to craft, which in Minecraft takes a screen."""

    keys: tuple[str, ...] = ()
    pitch: float = 0.0
    yaw: float = 0.0
    craft: str = "nothing"


Player = Callable[[State], Deed]  # says what to do from what he sees


def following(*parts: tuple[int, Deed]) -> Player:
    """Plays a script: so many ticks of each deed, and the last one for ever."""

    def deeds() -> Iterator[Deed]:
        for ticks, deed in parts:
            yield from [deed] * ticks
        while True:
            yield parts[-1][1]

    script = deeds()
    return lambda state: next(script)


def hunting(state: State) -> Deed:
    """Runs after the nearest mob and strikes."""
    alive = state.mobs.kind > 0
    if not alive.any():
        return Deed()
    eye = state.player.position + np.array([0.0, physics.EYE_HEIGHT, 0.0])
    heights = np.array([kind.body.height for kind in creatures.KINDS])[state.mobs.kind]
    to = state.mobs.position + np.array([0.0, 0.5, 0.0]) * heights[:, None] - eye
    x, y, z = to[np.argmin(np.where(alive, np.linalg.norm(to, axis=1), np.inf))]
    yaw = (np.degrees(np.arctan2(-x, z)) - state.player.yaw + 180.0) % 360.0 - 180.0
    pitch = np.degrees(np.arctan2(-y, np.hypot(x, z))) - state.player.pitch
    near = np.hypot(x, z) < 2.0
    keys = ("attack",) if near else ("attack", "forward", "sprint", "jump")
    return Deed(keys, float(np.clip(pitch, -10, 10)), float(np.clip(yaw, -10, 10)))


DIGGING = Deed(("attack",))


class Case(NamedTuple):
    """
    Attributes:
      task: its name.
      limit: ticks.
      seed: of the world.
      player: makes one.
      pays: terms of the reward that must have paid in the end, for the comparison to mean something.
      ends: "limit", "success" or "death".
      world: settings of the embedded world.
    """

    task: str
    limit: int
    seed: int
    player: Callable[[], Player]
    pays: set[str]
    ends: str = "limit"
    world: tuple[tuple[str, Any], ...] = ()


def climbing() -> Player:
    return following((10, Deed(pitch=10.0)), (1, Deed(("jump", "use"))))


def chopping() -> Player:
    return following((1, Deed(("attack", "forward"))))


def digging() -> Player:
    return following((1, Deed(("attack", "jump"), yaw=10.0)))


def digging_down() -> Player:
    return following((10, Deed(pitch=10.0)), (1, DIGGING))


def spinning() -> Player:
    return following((1, Deed(("attack",), yaw=5.8)))


def the_hunter() -> Player:
    return hunting


def toiling() -> Player:
    """Makes a wooden pickaxe at a table in a hole, with it stones, of those a better one, and digs on for iron."""

    def deeds() -> Generator[Deed, State, None]:
        yield Deed(craft="stick")
        state = yield Deed(craft="crafting_table")
        while count(state, "mine_block", "dirt") < 3:
            state = yield DIGGING
        for _ in range(3):
            state = yield Deed(pitch=-10.0)
        while count(state, "mine_block", "dirt") < 4:
            state = yield DIGGING
        while not count(state, "use_item", "crafting_table"):
            state = yield Deed(("use", holding(state, "crafting_table")))
        yield Deed(craft="wooden_pickaxe")
        for _ in range(3):
            state = yield Deed(pitch=10.0)
        while count(state, "pickup", "cobblestone") < 3:
            state = yield Deed(("attack", holding(state, "wooden_pickaxe")))
        state = yield Deed(craft="stone_pickaxe")
        while True:
            state = yield Deed(("attack", holding(state, "stone_pickaxe")))

    script = deeds()
    return lambda state: script.send(None if inspect.getgeneratorstate(script) == inspect.GEN_CREATED else state)


def count(state: State, event: str, name: str) -> int:
    """How often it has happened."""
    return int(getattr(state.statistics, event)[NAMES[event].index(name)])


def holding(state: State, item: str) -> str:
    """The key that takes an item into the hand; the first one's while there is none."""
    return f"hotbar.{1 + int(np.argmax(state.inventory.item == items.ID[item]))}"


DOWN = ("spawn_pitch", 60.0)
ROCK = (("ground", 12), ("hills", 0))  # eight blocks of it under four of soil
CASES = {
    "chop_tree": Case("chop_tree", 60, 3, chopping, {"log"}, world=(("spawn_turn", 0.0),)),
    "collect_dirt": Case("collect_dirt", 150, 3, digging, {"dirt"}, world=(DOWN,)),
    "collect_sand": Case("collect_sand", 150, 6, digging, {"sand"}, world=(DOWN,)),
    "build_pillar": Case("build_pillar", 100, 3, climbing, {"height"}),
    "mine_cobblestone": Case("mine_cobblestone", 200, 3, digging_down, {"cobblestone"}, world=ROCK),
    "mine_iron": Case(
        "mine_iron", 200, 17, toiling,
        {"stick", "crafting_table", "place_table", "wooden_pickaxe", "cobblestone", "stone_pickaxe", "iron_ore"},
        world=(*ROCK, ("ores", 12.0), ("spawn_pitch", 90.0)),
    ),
    "hunt_cow": Case("hunt_cow", 200, 3, the_hunter, {"hit", "cow"}),
    "combat_zombie, won": Case("combat_zombie", 350, 0, the_hunter, {"zombie"}, "success"),
    "combat_zombie, lost": Case("combat_zombie", 350, 3, spinning, {"death"}, "death"),
}  # fmt: skip


class Step(NamedTuple):
    """What one step says; `told` is its info."""

    reward: float
    terminated: bool
    truncated: bool
    told: dict[str, Any]


class Both(NamedTuple):
    """One case, played both ways."""

    case: Case
    task: Task
    begun: tuple[State, State]
    embedded: list[Step]
    wrapped: list[Step]


@functools.cache
def compiled(task: str, limit: int, settings: tuple[tuple[str, Any], ...]) -> tuple[voxel.World, Any, Any]:
    """A world, and its jitted functions."""
    changed = dataclasses.replace(load_task(task), time_limit=limit)
    world = voxel.make(changed, "vanilla", "minerl", **{**SMALL, **dict(settings)})
    return world, jax.jit(world.reset), jax.jit(world.step)


def act_of(deed: Deed) -> tuple[dict[str, np.ndarray], int]:
    """The agent action and the craft action."""
    pressed = {name: np.array([name in deed.keys], int) for name in actions.BUTTONS}
    agent = actions.encode({**pressed, "camera": np.array([[deed.pitch, deed.yaw]], float)})
    return {name: array[0] for name, array in agent.items()}, crafting.NAMES.index(deed.craft)


def play_embedded(step: Any, state: State, player: Player) -> tuple[list[Step], list[Any]]:
    """To the episode's end; the steps, and what was done in them."""
    steps: list[Step] = []
    acts = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        agent, craft = act_of(player(jax.device_get(state)))
        acts.append((agent, craft))
        keys = {n: a[0] for n, a in actions.decode({n: a[None] for n, a in agent.items()}).items()}
        state, timestep = step(state, controls(keys, craft))
        told = jax.device_get(timestep)
        steps.append(Step(float(told.reward), bool(told.terminated), bool(told.truncated), as_dict(told.info)))
    return steps, acts


def play_wrapped(env: MinecraftEnvironment, simulator: VoxelSimulator, acts: list[Any]) -> list[Step]:
    """As long as it lasts."""
    steps: list[Step] = []
    for agent, craft in acts:
        simulator.craft = craft
        steps.append(Step(*env.step(agent)[1:]))
        if steps[-1].terminated or steps[-1].truncated:
            break
    return steps


@pytest.fixture(scope="module", params=CASES)
def both(request: Any) -> Both:
    case = CASES[request.param]
    world, reset, step = compiled(case.task, case.limit, case.world)
    begun = reset(jax.random.key(case.seed))
    embedded, acts = play_embedded(step, begun, case.player())
    simulator = VoxelSimulator(world, reset, step)
    # The mobs are there already: their places are drawn otherwise.
    task = dataclasses.replace(world.task, mobs=(), fast_reset=None)
    env = MinecraftEnvironment(simulator, callbacks_for(task, settle_ticks=0))
    env.reset(seed=case.seed)
    return Both(case, world.task, (begun, simulator.state), embedded, play_wrapped(env, simulator, acts))


def test_every_task_that_both_can_play_is_played_and_all_that_it_pays_for_happens() -> None:
    playable = set()
    for name in playable_tasks():
        with suppress(ValueError):  # for the embedded world only
            check_for_minecraft(load_task(name))
            playable.add(name)
    assert {case.task for case in CASES.values()} == playable
    for name in playable:
        paid = set().union(*(case.pays for case in CASES.values() if case.task == name))
        assert paid == {term.name for term in load_task(name).reward}, name


def test_it_begins_the_same(both: Both) -> None:
    ours, theirs = both.begun
    for mine, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, their)
    assert int(ours.inventory.count.sum()) == sum(stack.count[0] for stack in both.task.inventory)


@pytest.mark.parametrize("mask", [None, (), ("attack", "camera"), ("inventory", "hotbar.2")])
def test_a_policy_sees_the_same_mask(mask: tuple[str, ...] | None) -> None:
    for name in {case.task for case in CASES.values()}:
        task = load_task(name) if mask is None else dataclasses.replace(load_task(name), mask=mask, fast_reset=None)
        env = MinecraftEnvironment(ScriptedSimulator(), callbacks_for(task))
        shown = {n.removeprefix(MASK_PREFIX): a for n, a in env.reset()[0].items() if n.startswith(MASK_PREFIX)}
        masks = voxel.make(task, "vanilla", "vpt", **SMALL).action_masks
        assert set(shown) == set(masks) == (set() if task.mask is None else set(actions.VPT_ACTION_SPEC))
        for component, choices in masks.items():
            np.testing.assert_array_equal(shown[component], choices)


def test_every_step_pays_and_says_the_same(both: Both) -> None:
    terms = {f"reward/{term.name}" for term in both.task.reward}
    assert len(both.wrapped) == len(both.embedded)
    for number, (ours, theirs) in enumerate(zip(both.embedded, both.wrapped, strict=True)):
        assert theirs.reward == pytest.approx(ours.reward), number
        assert terms | {"success"} <= set(theirs.told), number
        for name in (*terms, "success"):
            assert theirs.told[name] == pytest.approx(ours.told[name]), (number, name)


def test_it_ends_in_the_same_step_and_in_the_same_way(both: Both) -> None:
    assert [step[1:3] for step in both.wrapped] == [step[1:3] for step in both.embedded]
    last = both.embedded[-1]
    assert last.truncated == (len(both.embedded) == both.case.limit)
    assert last.terminated == (both.case.ends != "limit")
    assert (last.told["health"] == 0) == (both.case.ends == "death")


def test_the_last_step_tells_the_same(both: Both) -> None:
    ours, theirs = both.embedded[-1].told, both.wrapped[-1].told
    assert {name for name in both.case.pays if ours[f"reward/{name}"]} == both.case.pays
    for event in ("mine_block", "pickup", "drop", "craft_item", "use_item", "break_item", "kill_entity", "custom"):
        assert theirs[event] == ours[event], event
    assert (theirs["health"], theirs["food_level"]) == (ours["health"], ours["food_level"])


def test_the_tasks_are_solved(both: Both) -> None:
    """The comparison saw success become true, but for the episode that a death ends."""
    solved = [step.told["success"] for step in both.embedded]
    assert solved[0] is False
    assert solved[-1] is (both.case.ends != "death")


def test_an_episode_in_a_world_that_is_kept_is_paid_for_what_is_done_in_it() -> None:
    """The second one of a task with a fast reset; statistics go on where the first has left them."""
    case = CASES["mine_cobblestone"]
    world, reset, step = compiled(case.task, case.limit, case.world)
    simulator = VoxelSimulator(world, reset, step)
    env = MinecraftEnvironment(simulator, callbacks_for(world.task, settle_ticks=0))
    env.reset(seed=case.seed)
    first = simulator.state
    _, acts = play_embedded(step, first, case.player())
    play_wrapped(env, simulator, acts)
    env.reset()
    state = simulator.state
    assert (state.blocks != first.blocks).any()
    assert int(state.statistics.pickup.sum()) > 0
    paid = np.zeros_like(state.paid)
    begun = dataclasses.replace(state, statistics=nothing_yet(), paid=paid, steps=np.int32(0))
    embedded, acts = play_embedded(step, begun, case.player())
    wrapped = play_wrapped(env, simulator, acts)
    assert [s[:3] for s in wrapped] == [s[:3] for s in embedded]
    assert wrapped[-1].told["pickup"] == embedded[-1].told["pickup"]
    assert wrapped[-1].told["success"] is embedded[-1].told["success"] is True
