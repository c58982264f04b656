"""What the factories of both Minecraft simulators share."""

from __future__ import annotations

import pytest

from minestudio_jax.envs.env import MisconfiguredEnvironment
from minestudio_jax.envs.factory import CommonOptions, WorldSeeds, common_options, first_biome
from minestudio_jax.envs.tasks import Task


def test_options_are_sorted_by_whose_they_are():
    assert common_options({}) == CommonOptions()
    options = common_options({"heap_mib": 1024, "step_timeout_s": 5, "record": {"folder": "videos"}})
    assert (options.launch, options.step_timeout_s) == ({"heap_mib": 1024}, 5)
    assert options.record == {"folder": "videos"}
    assert common_options({"port": 9000, "host": "game"}) == CommonOptions(port=9000, host="game")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"heap_mb": 1024}, "option='heap_mb' is not one of .*; did you mean 'heap_mib'"),
        ({"launch": {}}, "option='launch' is not one of"),
        ({"port": 9000, "heap_mib": 1024}, "heap_mib have no effect on the engine at port=9000: remove them"),
        ({"port": "9000"}, "port='9000' must be a whole number"),
        ({"reset_timeout_s": 0}, "reset_timeout_s=0 must be a number of seconds above 0"),
        ({"step_timeout_s": "long"}, "step_timeout_s='long' must be"),
    ],
)
def test_an_option_that_is_wrong_is_refused(given, says):
    with pytest.raises(MisconfiguredEnvironment, match=says):
        common_options(given)


def test_a_world_with_a_seed_of_its_own_leaves_the_others_as_they_were():
    """Else environments that begin at the same seeded place would go on in the same worlds."""
    plain, placed = WorldSeeds(1), WorldSeeds(1)
    assert placed.next(42) == 42
    assert [placed.next(None) for _ in range(3)] == [plain.next(None) for _ in range(3)]
    assert placed.next(42) == 42
    assert placed.next(None) == plain.next(None) != WorldSeeds(2).next(None)
    placed.begin(1)
    assert placed.next(None) == WorldSeeds(1).next(None)


def test_a_mission_asks_for_the_group_of_the_tasks_biome_or_of_the_options():
    task = Task("dig", "Dig.", (), biome="mountains")
    assert first_biome(task, "plains") == "extreme_hills"
    assert first_biome(Task("dig", "Dig.", ()), "plains") == "plains"
    assert first_biome(None, "") == ""
    with pytest.raises(MisconfiguredEnvironment, match=r"biome='plain'.*did you mean 'plains'"):
        first_biome(None, "plain")
