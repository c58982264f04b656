"""The trainer as a whole, collecting on the device: what a stop in the middle must not change."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
from functools import partial

import jax
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs import voxel
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.bad_updates import LearningFailure
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.utils.metrics import read_records
from minestudio_jax.utils.timing import Stopwatch
from tests.trainer.counting_world import CountingWorld
from tests.trainer.fragments import SPEC

CONFIG = TrainerConfig(
    batch_size_per_device=2, batches_per_iteration=2, context_length=4, epochs_per_iteration=2, learning_rate=1e-3,
    save_interval=100, discount=0.9,
)  # fmt: skip
# Episodes end, worlds are made anew and mobs walk within the few steps of the test.
COWS = voxel.make("hunt_cow", preset="toy", size=24, height=20, ray_strides=8, time_limit=5, frame_skip=2)


@pytest.fixture
def open_trainer(tmp_path):
    trainers = []

    def make(name, world, spec, envs=2, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        (tmp_path / name / "logs").mkdir(parents=True, exist_ok=True)
        policy = ImpalaPolicy(spec, (4,), 8)
        mesh = sharding.make_mesh(TrainerConfig())
        collector = world and DeviceCollector(policy, world, mesh, envs, 4 // envs, 4, (8, 8), 0)
        trainers.append(PPOTrainer(config, policy, spec, 4, tmp_path / name, 0, None, collector))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.close()


def iterate(trainer, count):
    metrics = []
    for _ in range(count):
        metrics.append(trainer.iterate(trainer.wait_for_batch(1.0), Stopwatch()))
    return metrics


def everything(trainer):
    return jax.tree.leaves(jax.device_get((trainer._state, trainer._rollout)))


def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(open_trainer, caplog):
    """D-40."""
    spec = EnvironmentSpec({"image": ArraySpec((8, 8, 3), "uint8")}, COWS.action_spec)
    straight = open_trainer("run", COWS, spec)
    iterate(straight, 3)
    straight.checkpoint(Stopwatch(), force=True)
    expected = iterate(straight, 3)
    straight.close()
    resumed = open_trainer("run", COWS, spec)
    assert resumed.resumed
    assert resumed.counters.iteration == 3
    metrics = iterate(resumed, 3)
    np.testing.assert_equal(metrics, expected)
    for a, c in zip(everything(straight), everything(resumed), strict=True):
        np.testing.assert_array_equal(a, c)
    assert int(resumed._rollout.used[0]) > 4  # worlds were made anew on both sides of the stop
    assert not caplog.records


def test_while_the_value_head_warms_up_its_every_step_is_published_and_the_policy_stays(open_trainer):
    """Workers judge with it what a time limit cut off."""
    trainer = open_trainer("warm", CountingWorld(), SPEC, vf_warmup=2)
    before = jax.device_get(trainer._state.params)
    iterate(trainer, 2)
    assert trainer.counters.policy_version == 2
    after = jax.device_get(trainer._state.params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["network"], after["network"])
    assert all(jax.tree.leaves(moved.pop("value_head")))
    assert not any(jax.tree.leaves(moved))


def broken(loaded):
    """The batch with a reward that is not finite in every fragment."""
    reward = np.array(loaded.batch.reward)
    reward[:, 0] = np.nan
    batch = dataclasses.replace(loaded.batch, reward=jax.device_put(reward, loaded.batch.reward.sharding))
    return dataclasses.replace(loaded, batch=batch)


def test_too_many_bad_updates_go_back_to_the_checkpoint_once_and_then_end_the_run(open_trainer, tmp_path, caplog):
    """D-29, D-36: no parameter is ever not finite; the file names what was skipped; the error names the remedy."""
    trainer = open_trainer("run", CountingWorld(), SPEC, max_bad_updates=4)  # what one iteration has
    iterate(trainer, 2)
    trainer.checkpoint(Stopwatch(), force=True)
    good = jax.device_get(trainer._state.params)
    iterate(trainer, 1)
    version = trainer.counters.policy_version
    metrics = trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())
    assert metrics["ppo/skipped_updates"] == 4
    jax.tree.map(np.testing.assert_array_equal, good, jax.device_get(trainer._state.params))
    assert "going back to the parameters of iteration 2" in caplog.text
    assert (trainer.counters.iteration, trainer.counters.policy_version) == (4, version + 1)
    iterate(trainer, 1)
    with pytest.raises(LearningFailure, match=r"max_bad_updates=4 .*did not help.*bad_updates\.jsonl.*learning_rate"):
        trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())
    assert len(read_records(tmp_path / "run" / "logs" / "bad_updates.jsonl")) == 8


def test_going_back_passes_over_a_damaged_checkpoint_and_saves_its_iteration_again(open_trainer, tmp_path, caplog):
    """D-42: the same verification as at a start."""
    trainer = open_trainer("run", CountingWorld(), SPEC, max_bad_updates=4)
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    good = jax.device_get(trainer._state.params)
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    assert trainer.flush_checkpoint() == 2
    (tmp_path / "run" / "checkpoints" / "2" / "counters" / "metadata").write_text("")
    trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())
    assert "going back to the parameters of iteration 1" in caplog.text
    assert "the checkpoint of iteration 2 in" in caplog.text
    assert "counters/metadata has 0 bytes instead of" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, good, jax.device_get(trainer._state.params))
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    assert trainer.flush_checkpoint() == 4


def test_parameters_with_which_all_steps_are_skipped_are_not_what_a_run_continues_from(open_trainer, caplog):
    """Though a stop asks for a checkpoint: it would be the only one that is gone back to."""
    trainer = open_trainer("run", CountingWorld(), SPEC)
    trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())
    trainer.checkpoint(Stopwatch(), force=True)
    assert trainer.flush_checkpoint() is None
    assert "iteration 1 is not saved, as all of its optimiser steps were skipped: there is no checkpoint" in caplog.text
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())
    trainer.checkpoint(Stopwatch(), force=True)
    assert trainer.flush_checkpoint() == 2
    assert "iteration 3 is not saved" in caplog.text
    assert "remains that of iteration 2" in caplog.text
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    assert trainer.flush_checkpoint() == 4


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(open_trainer):
    trainer = open_trainer("run", CountingWorld(), SPEC, max_bad_updates=4)
    with pytest.raises(LearningFailure, match="before there was a checkpoint"):
        trainer.iterate(broken(trainer.wait_for_batch(1.0)), Stopwatch())


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize(
    ("rule", "renewed"),
    [({}, []), ({"reference_update": "interval", "reference_interval": 2}, [2, 4]),
     ({"reference_update": "best_return"}, [1, 3])],
)  # fmt: skip
def test_the_reference_is_replaced_by_its_rule_and_lies_in_the_checkpoint(open_trainer, rule, renewed):
    """D-22: never, every so many iterations, or with a mean return better than all before."""
    trainer = open_trainer("run", CountingWorld(), SPEC, kl_reference_coef=0.1, **rule)
    reference, last = jax.device_get((trainer._state.reference, trainer._state.params))
    for iteration, score in enumerate((1.0, 0.5, 2.0, 2.0), start=1):
        iterate(trainer, 1)
        trainer.set_progress(0, 0.0, score, publish=True)
        last = jax.device_get(trainer._state.params)
        now = jax.device_get(trainer._state.reference)
        assert same(now, last if iteration in renewed else reference)
        reference = now
    assert trainer.counters.best_return == 2.0
    trainer.checkpoint(Stopwatch(), force=True)
    trainer.close()
    again = open_trainer("run", CountingWorld(), SPEC, kl_reference_coef=0.1, **rule)
    assert same(jax.device_get(again._state.reference), reference)
    assert again.counters.best_return == 2.0


def test_a_reference_that_is_an_average_follows_every_iteration(open_trainer):
    """D-22: r_k = d r_{k-1} + (1 - d) theta_k, across a checkpoint, too."""
    average = {"kl_reference_coef": 0.1, "reference_update": "ema", "reference_ema_decay": 0.75}
    trainer = open_trainer("run", CountingWorld(), SPEC, **average)
    expected = jax.device_get(trainer._state.reference)
    for iteration in range(1, 5):
        if iteration == 3:
            trainer.checkpoint(Stopwatch(), force=True)
            trainer.close()
            trainer = open_trainer("run", CountingWorld(), SPEC, **average)
        (metrics,) = iterate(trainer, 1)
        params, reference = jax.device_get((trainer._state.params, trainer._state.reference))
        expected = jax.tree.map(lambda r, p: 0.75 * r + 0.25 * p, expected, params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), reference, expected)
        assert not same(reference, params)
        assert iteration == 1 or metrics["loss/kl_reference"] > 0


def test_a_run_may_be_continued_with_a_reference_or_without(open_trainer, caplog):
    """Of what the parameters were when it got one, which from then on is in its checkpoints."""

    def resumed(coefficient):
        trainer = open_trainer("run", CountingWorld(), SPEC, kl_reference_coef=coefficient)
        params, reference = jax.device_get((trainer._state.params, trainer._state.reference))
        (metrics,) = iterate(trainer, 1)
        assert ("loss/kl_reference" in metrics) == (coefficient > 0)
        trainer.checkpoint(Stopwatch(), force=True)
        trainer.close()
        return params, reference

    assert resumed(0.0)[1] is None
    assert "is the reference" not in caplog.text
    params, reference = resumed(0.1)
    assert same(params, reference)
    assert "the policy of iteration 1 is the reference: trainer.kl_reference_coef was 0" in caplog.text
    params, again = resumed(0.2)
    assert same(reference, again)
    assert not same(params, again)
    assert resumed(0.0)[1] is None
    assert resumed(0.1)[1] is not None
    assert "the policy of iteration 4 is the reference" in caplog.text


def test_actions_are_fresh_and_episodes_are_told(open_trainer):
    trainer = open_trainer("run", CountingWorld(), SPEC)
    for metrics in iterate(trainer, 2):
        assert metrics["lag/policy_versions_max"] == 0
        assert metrics["ppo/first_ratio_error"] < 1e-4
    ended = trainer.last_ended
    assert ended.ended.sum() >= 2
    assert set(ended.length[ended.ended].tolist()) <= {3, 4, 5, 6}


def test_an_iteration_waits_for_the_device_once(open_trainer, monkeypatch):
    """D-32: one compiled call that calls nothing on the host, and one reading of its results."""
    trainer = open_trainer("run", CountingWorld(), SPEC)
    trainer.compile()
    loaded = trainer.wait_for_batch(1.0)
    fetched, get = [], jax.device_get

    def counted(tree):
        if threading.current_thread() is threading.main_thread():  # the publisher's own reading holds nobody up
            fetched.append(tree)
        return get(tree)

    monkeypatch.setattr(jax, "device_get", counted)
    trainer.iterate(loaded, Stopwatch())
    assert len(fetched) == 1
    assert not re.search(r"custom_call_target=\"[^\"]*callback", trainer._update.as_text())


def saved_once(trainer):
    """What it learns from, and with, after one iteration, which is in its checkpoint."""
    iterate(trainer, 1)
    trainer.checkpoint(Stopwatch(), force=True)
    trainer.close()
    return jax.device_get((trainer._state, trainer._rollout))


def test_with_another_number_of_environments_only_the_worlds_begin_anew(open_trainer, caplog):
    first = jax.device_get(open_trainer("other", CountingWorld(), SPEC, 4)._rollout)
    state, _ = saved_once(open_trainer("run", CountingWorld(), SPEC, 2))
    resumed = open_trainer("run", CountingWorld(), SPEC, 4, max_bad_updates=4)
    assert "worlds begin anew, as the checkpoint of iteration 1 " in caplog.text
    assert "rollout.discounted_return is (2,), expected (4,)" in caplog.text
    assert resumed.counters.iteration == 1
    assert same(jax.device_get(resumed._state), state)
    assert resumed._rollout.first.all()
    assert not same(jax.device_get(resumed._rollout.worlds), first.worlds)  # not those that a new run begins with
    caplog.clear()
    resumed.iterate(broken(resumed.wait_for_batch(1.0)), Stopwatch())
    assert "going back to the parameters of iteration 1" in caplog.text
    assert "worlds" not in caplog.text  # which go on
    saved = saved_once(resumed)
    caplog.clear()
    again = open_trainer("run", CountingWorld(), SPEC, 4)
    assert same(jax.device_get((again._state, again._rollout)), saved)
    assert not caplog.records


def test_a_run_may_change_to_collecting_on_the_device_and_back(open_trainer, caplog):
    state, _ = saved_once(open_trainer("run", CountingWorld(), SPEC))
    without = open_trainer("run", None, SPEC)
    assert without._rollout is None
    assert same(jax.device_get(without._state), state)
    without.counters = dataclasses.replace(without.counters, iteration=2)
    without.checkpoint(Stopwatch(), force=True)
    without.close()
    assert not caplog.records
    back = open_trainer("run", CountingWorld(), SPEC)
    assert back.counters.iteration == 2
    assert same(jax.device_get(back._state), state)
    assert "worlds begin anew, as the checkpoint of iteration 2 " in caplog.text
    assert "is missing, expected (2,)" in caplog.text
    iterate(back, 1)


def continue_by_an_iteration(folder):
    """With all devices of this process, what the run in a folder has learnt so far, if there is one."""
    policy, devices = ImpalaPolicy(SPEC, (4,), 8), jax.device_count()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    collector = DeviceCollector(policy, CountingWorld(), sharding.make_mesh(CONFIG), 4, devices, 4, (8, 8), 0)
    trainer = PPOTrainer(CONFIG, policy, SPEC, 4, folder, 0, None, collector)
    print("continues after", trainer.counters.iteration, "on", devices)
    now = jax.tree.leaves(jax.device_get(trainer._state))
    if trainer.resumed:
        with np.load(folder / "state.npz") as before:
            for a, b in zip(before.values(), now, strict=True):
                np.testing.assert_array_equal(a, b)
    iterate(trainer, 1)
    np.savez(folder / "state.npz", *jax.tree.leaves(jax.device_get(trainer._state)))
    trainer.checkpoint(Stopwatch(), force=True)
    trainer.close()


_ON_TWO_DEVICES = """
import logging, sys
from pathlib import Path
from tests.trainer.test_ppo_trainer import continue_by_an_iteration
logging.basicConfig(stream=sys.stdout, force=True)
continue_by_an_iteration(Path(sys.argv[1]))
"""


def test_a_run_continues_on_fewer_devices_and_on_more(tmp_path, capsys, caplog):
    """D-40: of two processes with two devices and, between them, of this one, which has one."""

    def on_two():
        command = [sys.executable, "-c", _ON_TWO_DEVICES, str(tmp_path / "run")]
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def on_one():
        continue_by_an_iteration(tmp_path / "run")
        return capsys.readouterr().out + caplog.text

    for iteration, (devices, learn) in enumerate(((2, on_two), (1, on_one), (2, on_two))):
        said = learn()
        assert f"continues after {iteration} on {devices}" in said
        warned = re.findall(r"worlds begin anew.*iteration (\d+) .*rollout\.key is .*, expected .*", said)
        assert warned == [str(iteration)][:iteration]
