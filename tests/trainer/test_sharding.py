"""Meshes change where arrays lie and what crosses between devices, never what is learnt."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.policy import TensorRule
from minestudio_jax.trainer import sharding

SINGLE, DATA, BOTH, FSDP, TENSOR = "", "data:8", "data:4,fsdp:2", "fsdp:8", "data:2,fsdp:2,tensor:2"

_LEARN = """
import json, sys
import jax, numpy as np
from functools import partial
from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.pretrained import spec_of
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.cost import flop_of
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.traffic import traffic_of
from minestudio_jax.trainer.update import make_update
from tests.trainer.fragments import SPEC, make_fragments

def learn(mesh):
    mesh = sharding.make_mesh(TrainerConfig(mesh=mesh), jax.devices() if mesh else jax.devices()[:1])
    config = TrainerConfig(
        batch_size_per_device=8 // sharding.batch_shards(mesh), batches_per_iteration=1, epochs_per_iteration=2,
        context_length=4, learning_rate=1e-3, entropy_bonus_coef=0.01, kl_reference_coef=0.1, weight_decay=0.01,
    )
    begin = partial(initial_state, policy, config, jax.random.key(0))
    shardings = sharding.shardings(jax.eval_shape(begin), mesh, policy.tensor_rules())
    begin = jax.jit(begin, out_shardings=shardings).lower().compile()
    state = begin()
    batch = stack_fragments(make_fragments(policy, jax.device_get(state.params), 8, spec=spec))
    batch = jax.device_put(batch, sharding.along_batch(mesh))
    update = jax.jit(make_update(policy, config, mesh), donate_argnums=0, out_shardings=(shardings, None, None))
    now = coefficients(config, 0, 1)
    flop = flop_of(jax.make_jaxpr(update)(state, batch, now).jaxpr)
    update = update.lower(state, batch, now).compile()
    for _ in range(3):
        state, metrics, _ = update(state, batch, now)
    for x in jax.tree.leaves(state):
        copies = {}
        for shard in x.addressable_shards:
            mine = np.asarray(shard.data)
            assert np.array_equal(copies.setdefault(str(shard.index), mine), mine), "devices differ"
    began, updates = begin.memory_analysis(), update.memory_analysis()
    traffic = traffic_of(update, mesh.size)
    return {
        "params": np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(state.params)]).tolist(),
        "metrics": {k: float(v) for k, v in metrics.items()},
        "state_bytes": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)),
        "begin_bytes": began.temp_size_in_bytes + began.output_size_in_bytes,
        "update_bytes": updates.argument_size_in_bytes + updates.temp_size_in_bytes,
        "flop": flop,
        "statements": traffic.statements, "sent_bytes": traffic.sent_bytes,
        "params_bytes": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "split": sum("fsdp" in s.spec for s in jax.tree.leaves(shardings.params)),
    }

if sys.argv[1] == "vpt":
    shape = VPTShape(64, 4, 1, 8, channels=(8,), image_size=(16, 16))
    spec = spec_of(shape)
    policy = VPTPolicy(spec, shape)
else:
    spec, policy = SPEC, ImpalaPolicy(SPEC, channels=(), hidden_size=64)
print(json.dumps({mesh: learn(mesh) for mesh in sys.argv[2:]}))
"""


def learnt(policy, *meshes):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", _LEARN, policy, SINGLE, *meshes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def small():
    return learnt("impala", DATA, BOTH, FSDP)


@pytest.fixture(scope="module")
def vpt():
    return learnt("vpt", TENSOR)


def assert_same_learning(found, single, atol):
    # float32; Adam's steps are 1e-3 each, and where a gradient is all but 0 rounding decides what it makes of it.
    np.testing.assert_allclose(found["params"], single["params"], atol=atol)
    assert found["metrics"] == pytest.approx(single["metrics"], rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("mesh", [DATA, BOTH, FSDP])
def test_three_updates_are_those_of_one_device(small, mesh):
    """D-23, D-31: the same fragments in one step, on one device and spread over eight: the same parameters, of which all
    devices that have the same part have it bit for bit.
    """
    assert_same_learning(small[mesh], small[SINGLE], atol=2e-6)


def test_the_arithmetic_is_the_same(small, vpt):
    assert {small[mesh]["flop"] for mesh in (SINGLE, DATA, BOTH, FSDP)} == {small[SINGLE]["flop"]}
    assert vpt[TENSOR]["flop"] == vpt[SINGLE]["flop"] > 0


def test_a_state_that_is_split_takes_its_part_of_the_memory(small):
    """What is small, 2 % here, stays whole."""
    whole = small[SINGLE]["state_bytes"]
    assert small[DATA]["state_bytes"] == whole
    assert small[BOTH]["state_bytes"] < 0.52 * whole
    assert small[FSDP]["state_bytes"] < 0.15 * whole
    # Nor is anything ever whole on one device when it is made: what a device draws is its part.
    assert small[FSDP]["begin_bytes"] < 0.3 * small[SINGLE]["begin_bytes"]
    assert small[FSDP]["update_bytes"] < small[BOTH]["update_bytes"] < small[DATA]["update_bytes"]


def test_devices_speak_only_where_it_is_meant(small):
    """Ten fields of one number a step or less go everywhere; split parameters are gathered for the targets and for
    every optimiser step, as is the reference there; the gradient is added up once.
    """
    few = 12  # those fields, and log-probabilities and values under the present parameters
    for mesh in (DATA, BOTH, FSDP):
        statements, split = dict(small[mesh]["statements"]), small[mesh]["split"]
        assert split == (0 if mesh == DATA else 3)
        assert statements.pop("all-gather") == few + 3 * split
        assert statements.pop("reduce-scatter", 0) == split
        assert statements.pop("all-reduce") <= 4
        assert not statements


@pytest.mark.parametrize(("mesh", "gatherings"), [(DATA, 0), (FSDP, 1 + 2 + 1)])
def test_the_bytes_that_cross_are_those_of_gradients_and_gathered_parameters(small, mesh, gatherings):
    """In a ring of n each gathering of P bytes, and each scattered sum, is P (n - 1) / n, a sum that all get twice that.

    Parameters are gathered for the targets and for two optimiser steps, the reference, which stays the same, once.
    """
    parts, sent = small[mesh]["params_bytes"] * 7 / 8, small[mesh]["sent_bytes"]
    sums = 2 * (2 * parts) if mesh == DATA else 2 * parts
    assert sent["all-reduce"] + sent.get("reduce-scatter", 0) == pytest.approx(sums, rel=0.1)
    assert sent["all-gather"] == pytest.approx(gatherings * parts, rel=0.1, abs=4000)


def test_matrices_can_be_split_as_well(vpt):
    assert_same_learning(vpt[TENSOR], vpt[SINGLE], atol=5e-5)
    assert vpt[TENSOR]["state_bytes"] < 0.4 * vpt[SINGLE]["state_bytes"]


def test_rules_come_first_and_the_largest_axis_that_is_left_is_split():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    rules = [TensorRule(r"\bout\.kernel$", 0), TensorRule("kernel", -1)]
    shapes = {
        "in": {"kernel": (64, 128), "bias": (128,)},
        "out": {"kernel": (128, 64)},
        "mostly_odd": {"out.kernel": (64, 8641)},
        "odd": {"kernel": (64, 8641)},  # no axis that tensor could take where the rule says
        "image": (3, 3, 64, 32),
        "prime": (101, 103),
        "small": (63, 64),
        "number": (),
    }
    is_shape = lambda x: isinstance(x, tuple)
    tree = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=is_shape)
    assert sharding.partition_specs(tree, mesh, rules) == {
        "in": {"kernel": P("fsdp", "tensor"), "bias": P(None)},
        "out": {"kernel": P("tensor", "fsdp")},
        "odd": {"kernel": P("fsdp", None)},
        "mostly_odd": {"out.kernel": P(("tensor", "fsdp"), None)},
        "image": P(None, None, "fsdp", None),
        "prime": P(None, None),
        "small": P(None, None),
        "number": P(),
    }


def test_a_mesh_of_one_device_splits_nothing():
    mesh = sharding.make_mesh(TrainerConfig())
    spec = sharding.partition_specs(np.zeros((256, 256)), mesh, [TensorRule("", 0)])
    assert spec == P(None, None)
    assert sharding.batch_shards(mesh) == 1
