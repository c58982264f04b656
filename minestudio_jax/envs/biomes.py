"""Minecraft 1.16.5's biomes, and the groups of them that a mission can ask for.

Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

from minestudio_jax.envs.nearest import did_you_mean

GROUPS = {
    "beach": ("beach", "snowy_beach"),
    "desert": ("desert", "desert_hills", "desert_lakes"),
    "extreme_hills": (
        "mountains", "mountain_edge", "wooded_mountains", "gravelly_mountains", "modified_gravelly_mountains",
    ),
    "forest": (
        "forest", "wooded_hills", "flower_forest", "birch_forest", "birch_forest_hills", "tall_birch_forest",
        "tall_birch_hills", "dark_forest", "dark_forest_hills",
    ),
    "icy": ("snowy_tundra", "snowy_mountains", "ice_spikes"),
    "jungle": (
        "jungle", "jungle_hills", "jungle_edge", "modified_jungle", "modified_jungle_edge", "bamboo_jungle",
        "bamboo_jungle_hills",
    ),
    "mesa": (
        "badlands", "badlands_plateau", "eroded_badlands", "wooded_badlands_plateau", "modified_badlands_plateau",
        "modified_wooded_badlands_plateau",
    ),
    "mushroom": ("mushroom_fields", "mushroom_field_shore"),
    "ocean": (
        "ocean", "deep_ocean", "frozen_ocean", "deep_frozen_ocean", "cold_ocean", "deep_cold_ocean", "lukewarm_ocean",
        "deep_lukewarm_ocean", "warm_ocean", "deep_warm_ocean",
    ),
    "plains": ("plains", "sunflower_plains"),
    "river": ("river", "frozen_river"),
    "savanna": ("savanna", "savanna_plateau", "shattered_savanna", "shattered_savanna_plateau"),
    "swamp": ("swamp", "swamp_hills"),
    "taiga": (
        "taiga", "taiga_hills", "taiga_mountains", "snowy_taiga", "snowy_taiga_hills", "snowy_taiga_mountains",
        "giant_tree_taiga", "giant_tree_taiga_hills", "giant_spruce_taiga", "giant_spruce_taiga_hills",
    ),
}  # fmt: skip

_NO_SUCH = "Minecraft 1.16.5 has no such biome to begin in"
_GROUP_OF = {**{biome: group for group, biomes in GROUPS.items() for biome in biomes}, **{g: g for g in GROUPS}}


def check_biome(name: str, where: str) -> None:
    """Checks a biome that the engine's commands shall find; they do not understand groups.

    Raises:
      ValueError: it is none of Minecraft's overworld; names the nearest, or those of the group.
    """
    biomes = [biome for group in GROUPS.values() for biome in group]
    if name in biomes:
        return
    if name in GROUPS:
        raise ValueError(f"{where}={name!r} is a group of biomes: name some of them, {', '.join(GROUPS[name])}")
    raise ValueError(f"{where}={name!r}: {_NO_SUCH}{did_you_mean(name, biomes)}")


def group_of(biome: str) -> str:
    """The group of a biome, or the group itself.

    A mission says with its `PreferredSpawnBiome` where its world begins. The engine understands groups there and fails
    at any other word; its commands understand biomes.

    Raises:
      ValueError: Minecraft's overworld has none of that name; names the nearest.
    """
    if biome not in _GROUP_OF:
        raise ValueError(f"biome={biome!r}: {_NO_SUCH}{did_you_mean(biome, _GROUP_OF)}")
    return _GROUP_OF[biome]
