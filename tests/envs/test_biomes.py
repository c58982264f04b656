"""What a mission must call the place where its world begins."""

from __future__ import annotations

import pytest

from minestudio_jax.envs.biomes import GROUPS, group_of
from minestudio_jax.utils.task_files import load_task, task_names


def test_a_biome_has_a_group_and_a_group_is_its_own():
    assert group_of("mountains") == group_of("extreme_hills") == "extreme_hills"
    assert group_of("wooded_hills") == group_of("forest") == "forest"
    assert group_of("snowy_tundra") == "icy"
    biomes = [biome for group in GROUPS.values() for biome in group]
    assert len(biomes) == len(set(biomes))


def test_every_shipped_task_begins_where_minecraft_can():
    for task in map(load_task, task_names()):
        assert not task.biome or group_of(task.biome), task.name


def test_what_is_none_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"biome='mountain': .* no such biome to begin in; did you mean 'mountains'"):
        group_of("mountain")
