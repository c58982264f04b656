"""The count against one made by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.convolution import convolve_3x3
from minestudio_jax.policies.policy import Policy, PolicyOutput
from minestudio_jax.trainer.batch import abstract_batch
from minestudio_jax.trainer.cost import cost_of, flop_of
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update

INPUTS, ACTIONS = 500, 4000
SPEC = EnvironmentSpec({"row": ArraySpec((INPUTS,), "float32")}, {"choice": ACTIONS})


class Matrix(Policy):
    """One matrix product."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (INPUTS, ACTIONS)), "value": np.zeros((), np.float32)}

    def initial_state(self, batch):
        return ()

    def apply(self, params, obs, first, state):
        logits = jax.nn.log_softmax(obs["row"] @ params["kernel"])
        return PolicyOutput({"choice": logits}, params["value"] + 0 * first), state


def test_flop_of_convolutions_loops_and_branches():
    kernel = jax.ShapeDtypeStruct((3, 3, 5, 7), np.float32)

    def function(x, kernel):
        convolved = convolve_3x3(x, kernel)
        looped = jax.lax.map(lambda row: row @ row.T, x[0])
        return (
            convolved,
            looped,
            jax.lax.cond(x[0, 0, 0, 0] > 0, lambda: x[0, 0] @ x[0, 1].T, lambda: jnp.zeros((6, 6))),
        )

    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((2, 4, 6, 5), np.float32), kernel)
    convolution, product = 2 * (2 * 4 * 6) * 9 * 5 * 7, 2 * 6 * 5 * 6
    assert flop_of(jaxpr.jaxpr) == convolution + 4 * product + product


@pytest.mark.parametrize("channels", [4, 32])
def test_flop_of_a_convolution_are_those_of_the_plain_one_however_a_cpu_computes_it(channels):
    x = jax.ShapeDtypeStruct((2, 8, 8, channels), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), np.float32)
    plain = 2 * (2 * 8 * 8) * 9 * channels**2
    assert flop_of(jax.make_jaxpr(convolve_3x3)(x, kernel).jaxpr) == plain
    gradients = jax.grad(lambda x, kernel: convolve_3x3(x, kernel).sum(), argnums=(0, 1))
    assert flop_of(jax.make_jaxpr(gradients)(x, kernel).jaxpr) == 3 * plain


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, 1 + 2), ({"epochs_per_iteration": 3}, 1 + 3 * 2), ({"context_length": 2}, 1 + 2),
     ({"batches_per_iteration": 4, "batch_size_per_device": 2, "gradient_accumulation": 2}, 1 + 2)],
)  # fmt: skip
def test_flop_of_an_iteration(settings, passes):
    """A pass for the advantages, one forward and one for the kernel's gradient an epoch; of 8 x 4 products."""
    config = TrainerConfig(**{"batch_size_per_device": 8, "batches_per_iteration": 1, "context_length": 4, **settings})
    state = jax.eval_shape(partial(initial_state, Matrix(), config, jax.random.key(0)))
    batch = abstract_batch(Matrix(), SPEC, 8, 4)
    update = jax.jit(make_update(Matrix(), config, make_mesh(config)))
    cost = cost_of(update, update.lower(state, batch, Coefficients.abstract()).compile(), state, batch, config)
    frame = 2 * INPUTS * ACTIONS
    assert cost.flop == (8 * 4 * passes + 8) * frame  # and the bootstrap's frames
    assert cost.parameters == INPUTS * ACTIONS + 1
    assert cost.steps == 32
    assert cost.optimizer_steps == config.epochs_per_iteration * (
        config.batches_per_iteration // config.gradient_accumulation
    )
    assert cost.device_bytes > 3 * 4 * cost.parameters  # parameters and the optimiser's two moments
    assert f"{cost.parameters:,} parameters" in str(cost)
