from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import voxel
from minestudio_jax.envs.tasks import MobGroup, RewardTerm, Task
from minestudio_jax.envs.voxel import blocks as b
from minestudio_jax.envs.voxel import commands, items, mobs
from minestudio_jax.envs.voxel.clearance import clearance_of
from minestudio_jax.envs.voxel.statistics import CUSTOM

TASK = Task("test", "", (RewardTerm("log", "mine_block", ("oak_log",), 1.0),), mobs=(MobGroup("cow", 1),))
WORLD = voxel.make(TASK, "vanilla", "minerl", size=24, height=20, hills=0, tree_chance=0.0)
GROUND = WORLD.settings.ground


@pytest.fixture(scope="module")
def start():
    state = jax.jit(WORLD.reset)(jax.random.key(3))
    return commands.with_mob_slots(commands.execute(state, WORLD.settings, "/tp 10.5 7 12.5 0 0"), 2)


def after(state, *texts):
    for text in texts:
        state = commands.execute(state, WORLD.settings, text)
    return state


def held(state):
    inventory = state.inventory
    return {
        slot: (items.NAMES[item], int(count))
        for slot, (item, count) in enumerate(zip(inventory.item, inventory.count, strict=True))
        if count
    }


def cells(state, block):
    """Places of a block relative to the player's cell."""
    return {tuple(place - np.array([10, 7, 12])) for place in np.argwhere(state.blocks == b.ID[block])}


@pytest.mark.parametrize(
    ("texts", "inventory"),
    [
        (["/give @p minecraft:iron_axe"], {0: ("iron_axe", 1)}),
        (["give @a dirt 70"], {0: ("dirt", 64), 1: ("dirt", 6)}),
        (['/give @s diamond_sword{Enchantments:[{id:"sharpness, } x",lvl:5s}]} 1'], {0: ("diamond_sword", 1)}),
        (["/execute as @p at @s run give @s apple 3"], {0: ("apple", 3)}),
        (["/replaceitem entity @s weapon.mainhand stone_axe"], {0: ("stone_axe", 1)}),
        (["/replaceitem entity @s hotbar.8 dirt 9", "/replaceitem entity @p inventory.0 coal"],
         {8: ("dirt", 9), 9: ("coal", 1)}),
        (["/replaceitem entity @s container.35 dirt", "/replaceitem entity @s container.35 air"], {}),
        (["/give @s dirt 70", "/give @s coal", "/clear"], {}),
        (["/give @s dirt 70", "/give @s coal", "/clear @s minecraft:dirt"], {2: ("coal", 1)}),
        (["/give @s dirt 70", "/clear @s dirt 10"], {0: ("dirt", 60)}),
    ],
)  # fmt: skip
def test_items(start, texts, inventory):
    assert held(after(start, *texts)) == inventory


@pytest.mark.parametrize(
    ("text", "position", "yaw", "pitch"),
    [
        ("/tp @s ~ ~3 ~-2", (10.5, 10, 10.5), 0, 0),
        ("/tp 8 9 8", (8.5, 9, 8.5), 0, 0),  # whole numbers mean the middle of a cell
        ("/teleport @p 8.0 9.5 8.0 270 ~10", (8, 9.5, 8), -90, 10),
        ("/tp @s ~ ~-100 ~500", (10.5, 1, 21.5), 0, 0),  # not through the walls
    ],
)
def test_teleport(start, text, position, yaw, pitch):
    player = after(start, text).player
    np.testing.assert_allclose(player.position, position)
    assert (float(player.yaw), float(player.pitch)) == (yaw, pitch)


@pytest.mark.parametrize(
    ("text", "block", "places"),
    [
        ("/setblock ~2 ~ ~ minecraft:crafting_table", "crafting_table", {(2, 0, 0)}),
        ("/setblock ~0.6 ~ ~-0.6 oak_log[axis=y] replace", "oak_log", {(1, 0, -1)}),
        ("/setblock 12 7 12 furnace{Items:[]} destroy", "furnace", {(2, 0, 0)}),
        ("/fill ~1 ~ ~1 ~2 ~1 ~1 pumpkin", "pumpkin", {(1, 0, 1), (2, 0, 1), (1, 1, 1), (2, 1, 1)}),
        ("/execute as @p at @p run fill ~2 ~ ~ ~1 ~ ~ obsidian", "obsidian", {(1, 0, 0), (2, 0, 0)}),
        ("/fill ~ ~-1 ~ ~ ~ ~ white_wool keep", "white_wool", {(0, 0, 0)}),
        ("/fill ~ ~-1 ~ ~1 ~ ~ white_wool replace grass_block", "white_wool", {(0, -1, 0), (1, -1, 0)}),
    ],
)
def test_blocks(start, text, block, places):
    state = after(start, text)
    assert cells(state, block) == places
    np.testing.assert_array_equal(state.clearance, clearance_of(state.blocks))


def test_a_box_may_be_hollow_or_only_its_outline(start):
    full = after(start, "/fill ~-1 ~ ~-1 ~1 ~2 ~1 stone")
    inside = (10, 8, 12)
    assert full.blocks[inside] == b.STONE
    assert after(full, "/fill ~-1 ~ ~-1 ~1 ~2 ~1 obsidian outline").blocks[inside] == b.STONE
    hollow = after(full, "/fill ~-1 ~ ~-1 ~1 ~2 ~1 obsidian hollow")
    assert hollow.blocks[inside] == b.AIR
    assert len(cells(hollow, "obsidian")) == 26


def test_the_walls_stay(start):
    state = after(start, "/fill ~-50 ~-50 ~-50 ~50 ~50 ~50 air")
    assert (np.asarray(state.blocks == b.BARRIER) == np.asarray(start.blocks == b.BARRIER)).all()
    assert set(np.unique(state.blocks)) == {b.AIR, b.BARRIER}


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("/time set night", 13000),
        ("/time set 500", 500),
        ("/time add 1d", 1000),
        ("/time add 2s", 1040),
        ("/time set 9999999999", 9999999999 % 24000),
    ],
)
def test_time(start, text, time):
    assert int(after(start, text).time) == time


def test_summoned_mobs_take_the_empty_slots_and_live(start):
    state = after(start, "/execute as @p at @p run summon minecraft:sheep ~2 ~3 ~-1.5 {Age:0}", "/summon pig")
    assert [mobs.NAMES[kind] for kind in state.mobs.kind] == ["cow", "sheep", "pig"]
    np.testing.assert_allclose(state.mobs.position[1:], [[12.5, 10, 11], [10.5, 7, 12.5]])
    assert state.mobs.health.tolist() == [10, 8, 10]
    with pytest.raises(commands.CommandError, match="all 3 places for mobs are taken"):
        after(state, "/summon cow")
    assert commands.summons(["/summon cow", "/give @s dirt", "/execute as @p at @p run summon pig"]) == 2


def test_kill(start):
    state = after(start, "/summon pig", "/summon sheep")
    assert [mobs.NAMES[k] for k in after(state, "/kill @e[type=minecraft:pig]").mobs.kind] == ["cow", "none", "sheep"]
    animals_gone = after(state, "/kill @e[type=!player]")
    assert not animals_gone.mobs.kind.any()
    assert float(animals_gone.vitals.health) == 20
    dead = after(state, "/kill")
    assert float(dead.vitals.health) == 0
    assert int(dead.statistics.custom[CUSTOM.index("deaths")]) == 1


def test_another_place_of_the_biome_is_a_new_land_with_the_same_counts(start):
    state = dataclasses.replace(
        start, statistics=dataclasses.replace(start.statistics, pickup=start.statistics.pickup.at[3].set(5))
    )
    moved = after(state, "/give @s dirt 3", "/teleportbiome @a plains 300 ~0 -200")
    assert (np.asarray(moved.blocks) != np.asarray(start.blocks)).any()
    assert held(moved) == {0: ("dirt", 3)}
    assert int(moved.statistics.pickup[3]) == 5
    assert not moved.mobs.kind.any()
    again = after(moved, "/teleportbiome @a plains 300 ~0 -200")
    assert (np.asarray(again.blocks) != np.asarray(moved.blocks)).any()


@pytest.mark.parametrize("name", ["mountains", "minecraft:mountains", "mountain"])
def test_a_place_of_a_biome_may_be_called_as_minecraft_calls_it(start, name):
    settings = dataclasses.replace(WORLD.settings, biome="mountain")
    moved = commands.execute(start, settings, f"/teleportbiome @a {name} 300 ~0 -200")
    assert (np.asarray(moved.blocks) != np.asarray(start.blocks)).any()


@pytest.mark.parametrize("text", ["/weather clear", "/effect give @a night_vision 99999 250 true", "gamemode creative"])
def test_what_has_no_meaning_here_is_accepted_with_a_warning(start, text, caplog):
    caplog.set_level("WARNING")
    assert after(start, text) is start
    assert "has no meaning" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no such command"),
        ("/tpx 1 2 3", "'/tpx 1 2 3': there is no such command; known are .*tp"),
        ("/give @p minecraft:iron_ax", "no item 'iron_ax'; did you mean 'iron_axe'"),
        ("/give @p", "1 words where it needs give <player> <item>"),
        ("/give @p dirt many", "'many' is not a whole number from 1 to 2147483647"),
        ("/give @p dirt \u00b2", "'\u00b2' is not a whole number"),
        ("/give @p dirt 99999999999", "'99999999999' is not a whole number"),
        ("/time set 99999999999", "a number of ticks or one of day"),
        ("/give @e[type=cow] dirt", "is not the player"),
        ("/give @p air", "air cannot be given"),
        ("/replaceitem entity @s armor.chest iron_axe", "no slot 'armor.chest': it has weapon.mainhand, hotbar.0"),
        ("/replaceitem entity @s hotbar.9 dirt", "no slot 'hotbar.9'"),
        ("/replaceitem entity @s hotbar.1 iron_axe 2", "iron_axe stacks up to 1 only"),
        ("/replaceitem block 1 2 3 container.1 dirt", "only the player has slots"),
        ("/summon minecraft:creeper ~3 ~ ~", "no mob 'creeper'"),
        ("/setblock ~2 ~ ~ minecraft:chest", "no block 'chest'"),
        ("/setblock ~2 ~ ^ stone", "'\\^' is not a coordinate"),
        ("/setblock ~2 ~ ~ stone sometimes", "'sometimes' is none of destroy, keep and replace"),
        ("/setblock ~2 ~ ~ water", "a world of the biome 'plains' has no water"),
        ("/fill ~2 ~ ~ ~ 1 ~ dirt 0", "'0' is none of replace"),
        ("/fill ~2 ~ ~ dirt", "4 words where it needs fill"),
        ("/time set soon", "a number of ticks or one of day"),
        ("/time query", "1 words"),
        ("/tp @s ~ ~", "it needs tp"),
        ("/tp @s ~ ~ ~x", "'~x' is not a coordinate"),
        ("/kill @e[distance=..5]", "is not the player"),
        ("/teleportbiome @a jungle 0 0 0", "no biome 'jungle'"),
        ("/teleportbiome @a forest 0 0 0", "this world was made for the biome 'plains'"),
        ("/execute as @p at @p", "needs a 'run'"),
        ("/execute if block ~ ~ ~ stone run kill", "only 'as' and 'at' are understood"),
        ("/give @p dirt{a:1", "a brace is not closed"),
    ],
)
def test_what_cannot_be_done_is_said(start, text, says):
    with pytest.raises(commands.CommandError, match=says):
        after(start, text)


def test_commands_keep_shapes_and_types_and_can_be_compiled(start):
    texts = [
        "/give @s dirt 3", "/replaceitem entity @s hotbar.1 coal", "/clear @s coal", "/tp ~ ~1 ~ 3 ~", "/time set 5",
        "/time add 5", "/setblock ~1 ~ ~ stone", "/fill ~ ~3 ~ ~ ~4 ~ stone hollow", "/summon pig", "/kill @e", "/kill",
        "/clear",
    ]  # fmt: skip

    def all_of_them(state):
        return after(state, *texts)

    kinds = jax.tree.map(jax.typeof, start)
    for text in [*texts, "/teleportbiome @a plains"]:
        assert jax.tree.map(jax.typeof, after(start, text)) == kinds, text
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), start)
    both = jax.jit(jax.vmap(all_of_them))(batch)
    jax.tree.map(lambda a, c: np.testing.assert_array_equal(a, c[1]), all_of_them(start), both)
