"""Collecting on the device gives what the rollout workers give: fragments of genuine steps of the acting policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import ClassVar

import jax
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import abstract_batch
from minestudio_jax.trainer.device_collector import DeviceCollector
from tests.trainer.counting_world import CountingWorld
from tests.trainer.fragments import SPEC, tiny_policy

ENVS, PER_ENV, LENGTH = 4, 2, 5
DISCOUNT = 0.9


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def params(policy):
    return jax.jit(policy.init)(jax.random.key(1))


def make_collector(policy, seed=0, envs=ENVS):
    return DeviceCollector(
        policy, CountingWorld(), sharding.make_mesh(TrainerConfig()), envs, PER_ENV, LENGTH, (8, 8), seed, DISCOUNT
    )


@pytest.fixture(scope="module")
def collected(policy, params):
    """Three calls: batches, episodes and the states before each call."""
    collector = make_collector(policy)
    state, batches, ended, states = collector.begin(), [], [], []
    for _ in range(3):
        states.append(jax.device_get(state))
        state, batch, episodes = collector.collect(params, state)
        batches.append(jax.device_get(batch))
        ended.append(jax.device_get(episodes))
    return batches, ended, [*states, jax.device_get(state)]


def of_env(batches, env, read):
    """A field of one world over all calls, step by step."""
    rows = slice(env * PER_ENV, (env + 1) * PER_ENV)
    return np.concatenate([read(batch)[rows].reshape(PER_ENV * LENGTH, -1)[:, 0] for batch in batches])


def test_a_batch_has_the_shapes_of_every_other(collected, policy):
    real = collected[0][0]
    abstract = abstract_batch(policy, SPEC, ENVS * PER_ENV, LENGTH)
    assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), real) == jax.tree.map(
        lambda x: (x.shape, np.dtype(x.dtype)), abstract
    )
    assert real.continues.tolist() == [True, False] * ENVS


def test_every_step_is_the_worlds_own_in_order(collected):
    batches, _, _ = collected
    identities = set()
    for env in range(ENVS):
        step = of_env(batches, env, lambda b: b.obs["image"][:, :LENGTH, 0, 0, 1])
        first = of_env(batches, env, lambda b: b.first[:, :LENGTH])
        reward = of_env(batches, env, lambda b: b.reward)
        action = of_env(batches, env, lambda b: b.action["choice"])
        done = of_env(batches, env, lambda b: b.terminated | b.truncated)
        np.testing.assert_array_equal(first, step == 0)
        np.testing.assert_allclose(reward, step + 1 + 0.1 * action, rtol=1e-6)
        np.testing.assert_array_equal(first[1:], done[:-1])  # an episode begins where one ended, nowhere else
        assert first[0]
        same_episode = ~first[1:]
        assert (step[1:][same_episode] == step[:-1][same_episode] + 1).all()
        identities |= {tuple(b.obs["image"][n, t, 1, 1]) for b in batches for n in range(env * PER_ENV, (env + 1) * PER_ENV)
                       for t in range(LENGTH) if b.first[n, t]}  # fmt: skip
    episodes = sum(int(of_env(batches, env, lambda b: b.first[:, :LENGTH]).sum()) for env in range(ENVS))
    assert episodes > 20
    assert len(identities) > 0.7 * episodes  # hardly ever the same world twice


def test_the_last_row_is_the_first_of_what_follows(collected):
    batches, _, states = collected
    for call, batch in enumerate(batches):
        for n in range(ENVS * PER_ENV):
            follows = batch.obs["image"][n + 1, 0] if batch.continues[n] else states[call + 1].image[n // PER_ENV]
            np.testing.assert_array_equal(batch.obs["image"][n, LENGTH], follows)
    np.testing.assert_array_equal(batches[0].obs["image"][::PER_ENV, LENGTH], batches[0].obs["image"][1::PER_ENV, 0])


def test_learning_recomputes_what_acting_stored(collected, policy, params):
    for batch in collected[0]:
        output, _ = policy.apply(params, batch.obs, batch.first, batch.policy_state)
        logits = {name: head[:, :LENGTH] for name, head in output.logits.items()}
        np.testing.assert_allclose(heads.log_prob(logits, batch.action), batch.behaviour_logp, atol=1e-5)
        np.testing.assert_allclose(output.value, batch.behaviour_value, atol=1e-5)


def test_a_truncation_bootstraps_from_the_last_observation_of_its_own_episode(collected, policy, params):
    batches, _, _ = collected
    cuts = 0
    for batch in batches:
        for n, t in np.argwhere(batch.truncated):
            identity_step = batch.obs["image"][n, t]
            # The same memory, one step further, on the image that the ended world would have shown.
            obs = {"image": batch.obs["image"][n : n + 1, : t + 1]}
            _, memory = policy.apply(
                params,
                obs,
                batch.first[n : n + 1, : t + 1],
                jax.tree.map(lambda x, n=n: x[n : n + 1], batch.policy_state),
            )
            final = np.asarray(identity_step, int)
            final = (final + 31) % 256
            final[0, 0] = identity_step[0, 0]
            final[0, 0, 1] += 1
            value = policy.apply(params, {"image": final.astype(np.uint8)[None, None]}, np.zeros((1, 1), bool), memory)[
                0
            ].value
            np.testing.assert_allclose(batch.truncation_value[n, t], value[0, 0], atol=1e-5)
            cuts += 1
        assert (batch.truncation_value[~batch.truncated] == 0).all()
    assert cuts > 5


def test_episodes_are_counted_once_with_their_returns(collected):
    batches, ended, _ = collected
    for env in range(ENVS):
        reward = of_env(batches, env, lambda b: b.reward)
        done = of_env(batches, env, lambda b: b.terminated | b.truncated)
        rows = slice(env * PER_ENV, (env + 1) * PER_ENV)
        told = np.concatenate([e.ended[rows].reshape(-1) for e in ended])
        np.testing.assert_array_equal(told, done)
        starts = np.concatenate([[0], np.flatnonzero(done)[:-1] + 1])
        expected = [reward[a : z + 1].sum() for a, z in zip(starts, np.flatnonzero(done), strict=True)]
        total = np.concatenate([e.total_reward[rows].reshape(-1) for e in ended])[told]
        length = np.concatenate([e.length[rows].reshape(-1) for e in ended])[told]
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        np.testing.assert_array_equal(length, np.flatnonzero(done) - starts + 1)
        discounted = np.concatenate([e.discounted_return[rows].reshape(-1) for e in ended])[told]
        parts = [reward[a : z + 1] for a, z in zip(starts, np.flatnonzero(done), strict=True)]
        np.testing.assert_allclose(
            discounted, [(part * DISCOUNT ** np.arange(len(part))).sum() for part in parts], 1e-5
        )
        success = np.concatenate([e.success[rows].reshape(-1) for e in ended])[told]
        terminated = of_env(batches, env, lambda b: b.terminated)[done]
        np.testing.assert_array_equal(success, terminated)  # in this world


def test_as_many_worlds_are_made_as_are_used(collected):
    """Every used slot of the ring holds another world afterwards, the others the same."""
    _, ended, states = collected
    for call in range(3):
        before, after = states[call], states[call + 1]
        used = int(after.used[0] - before.used[0])
        assert used == ended[call].ended.sum()
        slots = {(int(before.used[0]) + i) % (2 * ENVS) for i in range(used)}
        changed = set(np.flatnonzero(before.fresh.identity != after.fresh.identity).tolist())
        assert changed == slots


def test_the_same_seed_collects_the_same_and_another_seed_does_not(policy, params):
    def first(seed):
        collector = make_collector(policy, seed)
        return jax.device_get(collector.collect(params, collector.begin())[1])

    one, again, other = first(0), first(0), first(1)
    assert all(np.array_equal(a, c) for a, c in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(one.reward, other.reward)


_ON_FOUR = """
import json, jax, numpy as np
from tests.trainer.test_device_rollout import make_collector
from tests.trainer.fragments import tiny_policy
policy = tiny_policy()
params = policy.init(jax.random.key(1))
collector = make_collector(policy, envs=8)
state = collector.begin()
identities = np.asarray(state.worlds.identity)
state, batch, ended = collector.collect(params, state)
rows = [s.data.shape[0] for s in batch.reward.addressable_shards]
print(json.dumps([len(rows), rows, len(set(identities.tolist())), float(np.asarray(batch.reward).min())]))
"""


def test_four_devices_play_worlds_of_their_own():
    env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", _ON_FOUR], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    devices, rows, identities, least = json.loads(done.stdout.splitlines()[-1])
    assert (devices, rows) == (4, [4, 4, 4, 4])
    assert identities == 8
    assert least >= 1


class MaskedWorld(CountingWorld):
    action_masks: ClassVar[dict[str, np.ndarray]] = {"choice": (np.arange(SPEC.action["choice"]) == 1).astype(np.uint8)}


def test_what_the_world_rules_out_is_never_done_and_part_of_what_is_learnt_from(policy, params):
    """D-61: on the device, too."""
    collector = DeviceCollector(policy, MaskedWorld(), sharding.make_mesh(TrainerConfig()), 2, 1, LENGTH, (8, 8), 0)
    _, batch, _ = collector.collect(params, collector.begin())
    assert (np.asarray(batch.action["choice"]) == 1).all()
    mask = np.asarray(batch.obs["action_mask.choice"])
    assert mask.shape == (2, LENGTH + 1, SPEC.action["choice"])
    assert (mask == MaskedWorld.action_masks["choice"]).all()
    np.testing.assert_allclose(batch.behaviour_logp, 0.0, atol=1e-6)  # there was nothing else to do
