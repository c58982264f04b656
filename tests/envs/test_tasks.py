"""Task files: what they say is checked before anything starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from minestudio_jax.envs import voxel
from minestudio_jax.envs.tasks import task_from_dict
from minestudio_jax.envs.voxel import rewards
from minestudio_jax.envs.voxel import statistics as stats
from minestudio_jax.envs.voxel.statistics import counted, nothing_yet
from minestudio_jax.utils.task_files import FOLDER, load_task, task_names

VALID = {
    "name": "t",
    "text": "Do it.",
    "reward": [{"name": "log", "event": "mine_block", "objects": ["oak_log", "dirt"], "reward": 2.0, "max_times": 3}],
}


def test_the_shipped_tasks_are_the_promised_ones_and_all_make_a_world():
    assert {"chop_tree", "collect_dirt", "mine_cobblestone", "mine_iron", "hunt_cow", "combat_zombie", "build_pillar",
            "navigate"} <= set(task_names())  # fmt: skip
    for name in task_names():
        task = load_task(name)
        assert task.name == name
        assert task.success is not None
        for preset in ("toy", "vanilla"):
            world = voxel.make(name, preset=preset)
            assert jax.eval_shape(world.reset, jax.random.key(0)).paid.shape == (len(task.reward),)


def test_a_task_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**VALID, "inventory": {"dirt": 3}}))
    world = voxel.make(str(path))
    assert world.task.reward[0].objects == ("oak_log", "dirt")
    assert int(world.reset(jax.random.key(0)).inventory.count[0]) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": []}, "reward must be a list of at least one term"),
        ({"rewards": []}, "there is no key 'rewards'"),
        ({"text": None, "name": None, "reward": [{"event": "mine_block"}]}, "reward 0: name is missing"),
        ({"reward": [{**VALID["reward"][0], "event": "mine"}]}, "event='mine' is not one of"),
        ({"reward": [{**VALID["reward"][0], "objects": "oak_log"}]}, "objects must be a list of names"),
        ({"reward": [{**VALID["reward"][0], "objects": ["oak_logs"]}]}, "did you mean 'oak_log'"),
        ({"success": {"event": "pickup"}}, "success: objects is missing"),
        ({"actions": "running"}, "actions='running' is not one of"),
        ({"inventory": ["dirt"]}, "inventory must be a mapping"),
        ({"inventory": {"dort": 1}}, "no item 'dort'"),
        ({"mobs": {"cows": 1}}, "did you mean 'cow'"),
        ({"world": {"hils": 1}}, "did you mean 'hills'"),
        ({"time_limit": 0}, "time_limit=0 must be a number of ticks"),
        ({"time_limit": "long"}, "time_limit='long' must be"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**VALID, **change}))
    with pytest.raises(ValueError, match=says):
        voxel.make(str(path))


@pytest.mark.parametrize(("text", "says"), [("a: [", "is not YAML"), ("- a", "must hold a mapping")])
def test_what_is_no_task_file_is_said(tmp_path, text, says):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_task(str(tmp_path / "t.yaml"))


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'chop_tree'"):
        load_task("chop_trees")
    assert FOLDER.name == "tasks"


def pay(task, *counts):
    """What each of consecutive ticks pays, with counts of (event, name, amount)."""
    before, times, paid = nothing_yet(), jnp.zeros(len(task.reward), jnp.int32), []
    for tick in counts:
        after = before
        for event, name, amount in tick:
            after = counted(after, event, stats.NAMES[event].index(name), amount)
        terms, times = rewards.paid(task, before, after, times)
        paid.append(np.asarray(terms).tolist())
        before = after
    return paid


def test_a_term_pays_once_a_tick_for_any_of_its_objects_and_max_times_in_all():
    task = task_from_dict(VALID, "here")
    log, dirt, stone = ("mine_block", "oak_log", 1), ("mine_block", "dirt", 5), ("mine_block", "stone", 1)
    assert pay(task, [log], [], [stone], [dirt], [log, dirt], [log]) == [[2], [0], [0], [2], [2], [0]]


def test_terms_add_up_and_know_their_own_events():
    more = {"name": "cow", "event": "kill_entity", "objects": ["cow"], "reward": -1.5}
    task = task_from_dict({**VALID, "reward": [*VALID["reward"], more]}, "here")
    paid = pay(
        task,
        [("mine_block", "dirt", 1), ("kill_entity", "cow", 1)],
        [("kill_entity", "pig", 1)],
        [("pickup", "dirt", 1)],
    )
    assert paid == [[2, -1.5], [0, 0], [0, 0]]


def test_success_counts_over_all_objects():
    task = task_from_dict({**VALID, "success": {"event": "pickup", "objects": ["dirt", "sand"], "count": 3}}, "here")
    counts = nothing_yet()
    for name, done in (("dirt", False), ("sand", False), ("stone", False), ("dirt", True)):
        counts = counted(counts, "pickup", stats.NAMES["pickup"].index(name), 1)
        assert bool(rewards.succeeded(task, counts)) == done
    assert not rewards.succeeded(task_from_dict(VALID, "here"), counts)
