"""The acting copy: padding, the slab of memories, and what a fragment is given of it; with VPT's memory."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.rollout.inference import Inference, placed

SHAPE = VPTShape(16, 2, 2, 4, 2, (4, 4), (8, 8))
ENVS = 3


@pytest.fixture(scope="module")
def policy():
    return VPTPolicy(spec_of(SHAPE), SHAPE)


@pytest.fixture(scope="module")
def params(policy):
    return jax.jit(policy.init)(jax.random.key(0))


def frames(seed: int) -> list[dict[str, np.ndarray]]:
    images = np.random.default_rng(seed).integers(0, 255, (ENVS, 8, 8, 3)).astype(np.uint8)
    return [{"image": image} for image in images]


def play(policy, params, groups) -> tuple[np.ndarray, Inference]:
    """Values [step, environment] of six steps in which the environments act in these groups; a reset in the middle."""
    inference = Inference(policy, spec_of(SHAPE), ENVS, ENVS, seed=0, greedy=True)
    values = np.zeros((6, ENVS))
    for step in range(6):
        obs, first = frames(step), np.array([step == 0, step in (0, 3), step == 0])
        for group in groups:
            ids = np.array(group, np.int32)
            values[step, ids] = inference.act(params, [obs[i] for i in ids], first[ids], ids)().value
    return values, inference


def test_padding_and_company_change_nothing(policy, params):
    """All at once, one by one, and in another order with two of three rows padded: the same values and memories."""
    together, one = play(policy, params, [[0, 1, 2]])
    for groups in ([[0], [1], [2]], [[2, 0], [1]]):
        apart, other = play(policy, params, groups)
        np.testing.assert_allclose(apart, together, atol=1e-5)
        ids, no = np.arange(ENVS, dtype=np.int32), np.zeros(ENVS, bool)
        for a, b in zip(jax.tree.leaves(one.memory(ids, no)), jax.tree.leaves(other.memory(ids, no)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_fragment_gets_the_memory_of_its_environment_and_an_empty_one_at_the_beginning_of_an_episode(policy, params):
    _, inference = play(policy, params, [[0, 1, 2]])
    memory = inference.memory(np.array([2, 0], np.int32), np.array([False, True]))
    alone = inference.memory(np.array([2], np.int32), np.array([False]))
    for both, single, empty in zip(
        jax.tree.leaves(memory), jax.tree.leaves(alone), jax.tree.leaves(policy.initial_state(1)), strict=True
    ):
        assert both.shape[0] == 2
        np.testing.assert_array_equal(both[0], single[0])
        np.testing.assert_array_equal(both[1], empty[0])
    assert jax.tree.leaves(alone)[0].any()
    nobody = inference.memory(np.zeros(0, np.int32), np.zeros(0, bool))
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(nobody))


def test_looking_at_a_value_moves_no_memory(policy, params):
    _, inference = play(policy, params, [[0, 1, 2]])
    ids, no = np.arange(ENVS, dtype=np.int32), np.zeros(ENVS, bool)
    before = inference.memory(ids, no)
    value = inference.value(params, frames(9), ids)
    assert value.shape == (ENVS,)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(inference.memory(ids, no)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_compiled_once_there_is_a_policy(policy, params):
    """An environment whose episode is cut for the first time would make all the others wait."""
    inference = Inference(policy, spec_of(SHAPE), ENVS, 2, seed=0)
    inference.compile(inference.prepared(params))
    compiled: list[str] = []

    def note(event: str, duration: float, **kwargs: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    obs, first = frames(1), np.zeros(ENVS, bool)
    try:
        for count in (1, 2, 3):
            ids = np.arange(count, dtype=np.int32)
            inference.act(inference.prepared(params), obs[:count], first[:count], ids, ~first[:count])()
            inference.value(inference.prepared(params), obs[:count], ids)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []


def test_padding_is_avoided_where_it_costs_arithmetic(policy, monkeypatch):
    """An accelerator takes as long for a batch that is half padding; a CPU half as long again for every row."""
    spec = spec_of(SHAPE)
    assert Inference(policy, spec, ENVS, 6, seed=0).efficient_sizes == (1, 2, 4, 6)
    assert Inference(policy, spec, ENVS, 6, seed=0, always_full=True).efficient_sizes == (6,)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    accelerated = Inference(policy, spec, ENVS, 6, seed=0)
    assert accelerated.batch_sizes == (1, 2, 4, 6)
    assert accelerated.efficient_sizes == (6,)


def test_parameters_are_placed_one_after_the_other_and_those_on_the_device_are_not_copied(monkeypatch):
    """Whoever acts meanwhile would wait behind all that have been begun."""
    there, host = jax.device_put(np.ones(1000, np.float32)), np.arange(1000, dtype=np.float32)
    begun, finished = [], []
    put, wait = jax.device_put, jax.block_until_ready

    def begin(leaf):
        assert len(begun) == len(finished), "the one before is not ready"
        begun.append(leaf)
        return put(leaf)

    def finish(leaf):
        finished.append(leaf)
        return wait(leaf)

    monkeypatch.setattr(jax, "device_put", begin)
    monkeypatch.setattr(jax, "block_until_ready", finish)
    got = placed({"there": there, "host": host, "more": host + 1})
    assert len(begun) == len(finished) == 3
    assert got["there"].unsafe_buffer_pointer() == there.unsafe_buffer_pointer()
    assert isinstance(got["host"], jax.Array)
    np.testing.assert_array_equal(got["host"], host)
    np.testing.assert_array_equal(got["more"], host + 1)
