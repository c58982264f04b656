"""The rollout worker: what it sends is what happened, and the learner recomputes what it acted on."""

from __future__ import annotations

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.config import Config, RolloutConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Policy, PolicyOutput
from minestudio_jax.rollout.rollout_worker import RolloutWorker
from minestudio_jax.trainer.batch import in_runs, stack_fragments
from tests.in_process_pool import SPEC, InProcessPool, signed_image

LENGTH = 6


def ends(env, episode, step):
    """Episodes of many lengths, all three kinds of end."""
    if step == 3 + (env + episode) % 7:
        return ("terminated", "truncated", "failed")[(env + 2 * episode) % 3]
    return ""


def reward(env, episode, step, action):
    return env + 0.1 * episode + 0.01 * step + 0.001 * action


@pytest.fixture(scope="module")
def policy():
    return ImpalaPolicy(SPEC, channels=(4,), hidden_size=8)


@pytest.fixture(scope="module")
def params(policy):
    return jax.jit(policy.init)(jax.random.key(1))


def collect(policy, params, pool, rounds, batch_size=4):
    config = Config(
        rollout=RolloutConfig(num_envs=pool.num_envs, inference_batch_size=batch_size, fragment_length=LENGTH)
    )
    fragments = []
    worker = RolloutWorker(config, 0, 0, "s", pool, policy, fragments.append)
    worker.set_policy(1, params)
    for _ in range(rounds):
        worker.run_once()
    return worker, fragments


@pytest.fixture(scope="module")
def collected(policy, params):
    pool = InProcessPool(5, ends, reward, ready=3)
    worker, fragments = collect(policy, params, pool, rounds=160)
    return pool, worker, fragments


def test_every_step_in_a_fragment_is_a_step_that_happened_in_order(collected):
    """D-13, D-14."""
    pool, _, fragments = collected
    happened = {(e[0], e[1], e[2]): e for e in pool.emitted if e[5] != "failed"}
    sent = []
    for fragment in fragments:
        for t in range(fragment.metadata.valid_steps):
            env, episode, step = (int(x) for x in fragment.obs["image"][t, 0, 0])
            assert env == fragment.metadata.env_id
            np.testing.assert_array_equal(fragment.obs["image"][t], signed_image(env, episode, step))
            _, _, _, action, given, outcome = happened[env, episode, step + 1]
            assert fragment.action["choice"][t, 0] == action
            assert fragment.reward[t] == pytest.approx(given)
            assert fragment.terminated[t] == (outcome == "terminated")
            assert fragment.truncated[t] == (outcome == "truncated")
            assert fragment.first[t] == (step == 0)
            sent.append((env, episode, step + 1))
    assert len(sent) == len(set(sent)), "no step is sent twice"
    in_flight = pool.num_envs * (LENGTH + 1)
    assert len(happened) - len(sent) <= in_flight, "only unfinished fragments are missing"
    assert any(f.metadata.valid_steps < LENGTH for f in fragments), "failures must have cut some"


def test_acting_and_learning_agree_on_log_probabilities_and_values(collected, policy, params):
    """D-09, D-11, D-27: across resets, failures, partial batches and fragment borders."""
    _, _, fragments = collected
    batch = stack_fragments(in_runs(fragments))
    output, _ = policy.apply(params, batch.obs, batch.first, batch.policy_state)
    logits = {k: l[:, :-1] for k, l in output.logits.items()}
    logp = heads.log_prob(logits, batch.action)
    np.testing.assert_allclose(batch.mask * logp, batch.mask * batch.behaviour_logp, atol=1e-5)
    known = np.concatenate([batch.mask, np.zeros((len(fragments), 1))], axis=1)
    rows = np.arange(len(fragments))
    known[rows, batch.mask.sum(1).astype(int)] = 1  # the bootstrap row is genuine too
    np.testing.assert_allclose(known * output.value, known * batch.behaviour_value, atol=1e-5)


def test_truncation_value_is_the_value_of_the_final_observation(collected, policy, params):
    """D-12."""
    _, _, fragments = collected
    checked = 0
    for fragment in fragments:
        for t in np.flatnonzero(fragment.truncated):
            env, episode, step = (int(x) for x in fragment.obs["image"][t, 0, 0])
            image = fragment.obs["image"][: t + 2].copy()
            image[t + 1] = signed_image(env, episode, step + 1)
            first = fragment.first[: t + 2].copy()
            first[t + 1] = False
            output, _ = policy.apply(params, {"image": image[None]}, first[None], fragment.policy_state[None])
            assert fragment.truncation_value[t] == pytest.approx(float(output.value[0, -1]), abs=1e-5)
            checked += 1
    assert checked > 5


def test_the_size_of_the_inference_batch_does_not_change_the_outputs(policy, params):
    """D-10: padding and splitting; sampling is made deterministic by comparing values of the same observations."""
    from minestudio_jax.rollout.inference import Inference

    images = [{"image": signed_image(0, 0, i)} for i in range(7)]
    env_id, first = np.arange(7, dtype=np.int32), np.zeros(7, bool)
    values = []
    for batch_size in (7, 3, 16):
        inference = Inference(policy, SPEC, 7, batch_size, seed=0, greedy=True)
        for _ in range(2):
            chosen = inference.act(params, images, first, env_id)()
        values.append((chosen.logp, chosen.value, inference.memory(env_id, first)))
    for logp, value, memory in values[1:]:
        np.testing.assert_allclose(logp, values[0][0], atol=1e-5)
        np.testing.assert_allclose(value, values[0][1], atol=1e-5)
        np.testing.assert_allclose(memory, values[0][2], atol=1e-5)


def test_episodes_are_reported_with_their_returns_and_failed_ones_are_not(collected):
    pool, worker, _ = collected
    report = worker.report()
    finished = [e for e in pool.emitted if e[5] in ("terminated", "truncated")]
    recorded = len(report.episodes)
    assert len(finished) - pool.num_envs <= recorded <= len(finished)
    assert report.env_failures == {"death": sum(e[5] == "failed" for e in pool.emitted)}
    env, episode = finished[0][:2]
    steps = [e for e in pool.emitted if e[:2] == (env, episode)]
    assert report.episodes[0].total_reward == pytest.approx(sum(e[4] for e in steps), rel=1e-5)
    assert report.episodes[0].length == len(steps)
    discounted = sum(e[4] * 0.999**t for t, e in enumerate(steps))  # trainer.discount's default
    assert report.episodes[0].discounted_return == pytest.approx(discounted, rel=1e-5)
    said = {"terminated": True, "truncated": None}  # by the pool, at an episode's end
    assert {e.success for e in report.episodes} == {True, None}
    assert report.episodes[0].success is said[steps[-1][5]]
    assert worker.report().episodes == [], "a report is given once"


def test_a_new_policy_is_labelled_with_its_version_from_the_next_batch_on(policy, params):
    """D-19."""
    pool = InProcessPool(2)
    worker, fragments = collect(policy, params, pool, rounds=2 * 3)
    other = jax.jit(policy.init)(jax.random.key(2))
    worker.set_policy(2, other)
    for _ in range(2 * 3 * LENGTH):
        worker.run_once()
    versions = [(f.metadata.version_first, f.metadata.version_last) for f in fragments if f.metadata.env_id == 0]
    assert versions[:2] == [(1, 2), (2, 2)]
    assert pool.versions == [1] * pool.versions.count(1) + [2] * pool.versions.count(2), (
        "the environments are told, too"
    )
    batch = stack_fragments(in_runs(fragments))
    fresh = batch.version[:, 0] == 2
    assert 0 < fresh.sum() < len(fresh)
    output, _ = policy.apply(other, batch.obs, batch.first, batch.policy_state)
    logp = heads.log_prob({k: l[:, :-1] for k, l in output.logits.items()}, batch.action)
    np.testing.assert_allclose(logp[fresh], batch.behaviour_logp[fresh], atol=1e-5)


class Versioned(Policy):
    """Says its version as its value."""

    def init(self, key):
        return {"version": jnp.zeros(())}

    def initial_state(self, batch):
        return ()

    def apply(self, params, obs, first, state):
        logits = jnp.full((*first.shape, SPEC.action["choice"]), -np.log(SPEC.action["choice"]), jnp.float32)
        return PolicyOutput({"choice": logits}, jnp.broadcast_to(params["version"], first.shape)), state


def test_ten_thousand_versions_in_a_hurry_are_never_mistaken_for_one_another():
    """D-19: number and parameters change together, whatever thread brings them."""
    config = Config(rollout=RolloutConfig(num_envs=3, inference_batch_size=2, fragment_length=LENGTH))
    fragments, over = [], threading.Event()
    worker = RolloutWorker(config, 0, 0, "s", InProcessPool(3, ends, ready=2), Versioned(), fragments.append)
    worker.set_policy(1, {"version": jnp.float32(1)})

    def hurry():
        for version in range(2, 10_002):
            worker.set_policy(version, {"version": np.float32(version)})
        over.set()

    thread = threading.Thread(target=hurry)
    thread.start()
    while not over.is_set() or len(fragments) < 30:
        worker.run_once()
    thread.join()
    for fragment in fragments:
        metadata, steps = fragment.metadata, fragment.metadata.valid_steps
        np.testing.assert_array_equal(fragment.version[:steps], fragment.behaviour_value[:steps])
        assert (fragment.version[0], fragment.version[steps - 1]) == (metadata.version_first, metadata.version_last)
        assert not fragment.version[steps:].any()
    assert len({fragment.metadata.version_last for fragment in fragments}) > 5


def test_draining_emits_what_there_is_of_every_fragment(policy, params):
    """D-45."""
    pool = InProcessPool(3, ends, ready=2)
    worker, fragments = collect(policy, params, pool, rounds=25)
    assert worker._under_way is not None, "some actions are being chosen"
    worker.drain()
    happened = {e[:3] for e in pool.emitted if e[5] != "failed"}
    sent = set()
    for fragment in fragments:
        for t in range(fragment.metadata.valid_steps):
            env, episode, step = (int(x) for x in fragment.obs["image"][t, 0, 0])
            sent.add((env, episode, step + 1))
        last = fragment.metadata.valid_steps
        image = fragment.obs["image"][last]
        np.testing.assert_array_equal(image, signed_image(*(int(x) for x in image[0, 0])))  # the bootstrap is genuine
        assert fragment.behaviour_value[last] != 0
    assert sent <= happened
    assert len(happened - sent) <= pool.num_envs, "only steps whose outcome nobody received are missing"


def test_a_synchronous_worker_acts_only_with_permission_and_the_version_it_names(policy, params):
    config = Config(rollout=RolloutConfig(num_envs=1, inference_batch_size=1, fragment_length=2, synchronous=True))
    fragments = []
    worker = RolloutWorker(config, 0, 0, "s", InProcessPool(1), policy, fragments.append)
    worker.set_policy(1, params)
    assert not worker.may_act
    worker.permit(1, 2)
    while worker.may_act:
        worker.run_once()
    assert len(fragments) == 2
    worker.permit(2, 1)
    assert not worker.may_act, "version 2 has not come yet"
    worker.set_policy(2, params)
    assert worker.may_act


def test_what_is_drawn_for_an_environment_does_not_depend_on_the_batch_it_is_in(policy, params):
    """D-59."""
    chosen = []
    for ready in (1, 2, 4):
        pool = InProcessPool(4, ready=ready)
        _, fragments = collect(policy, params, pool, rounds=2 * 30 * 4 // ready)
        chosen.append([np.concatenate([f.action["choice"][:, 0] for f in fragments if f.metadata.env_id == i][:4])
                       for i in range(4)])  # fmt: skip
    np.testing.assert_array_equal(chosen[0], chosen[1])
    np.testing.assert_array_equal(chosen[0], chosen[2])
    assert len(np.unique(chosen[0])) > 1


def test_settings_reach_the_fragments(policy, params):
    pool = InProcessPool(1)
    config = Config(rollout=RolloutConfig(num_envs=1, inference_batch_size=1, fragment_length=2))
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, task="my_task"))
    fragments = []
    worker = RolloutWorker(config, 4, 2, "session", pool, policy, fragments.append)
    worker.set_policy(7, params)
    for _ in range(2 * 3):
        worker.run_once()
    metadata = fragments[0].metadata
    assert (metadata.worker_id, metadata.worker_life, metadata.session_id) == (4, 2, "session")
    assert (metadata.task, metadata.version_first) == ("my_task", 7)
