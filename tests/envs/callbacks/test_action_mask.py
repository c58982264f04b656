"""What a task rules out is not in the policy's distribution, and is not pressed either."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs import actions
from minestudio_jax.envs.callbacks.action_mask import ActionMask
from minestudio_jax.envs.minecraft import MinecraftEnvironment
from minestudio_jax.policies import heads
from tests.envs.scripted_simulator import ScriptedSimulator


def pressed(agent):
    return actions.decode({name: np.asarray(a).reshape(-1, 1) for name, a in agent.items()})


@pytest.mark.parametrize(
    "keys", [("attack",), ("inventory",), ("drop", "use"), ("camera",), ("camera", "inventory"), ()]
)
def test_a_masked_key_is_in_no_action_that_is_left_and_all_others_are(keys):
    masks = actions.action_masks(keys)
    every = np.arange(actions.NUM_BUTTONS)
    decoded = pressed({"buttons": every, "camera": np.full(len(every), actions.CAMERA_NULL)})
    presses = np.any([decoded[key] for key in keys if key != "camera"] or [np.zeros(len(every))], axis=0)
    turns = actions.CAMERA_ON_TABLE & (every != actions.INVENTORY) & ("camera" in keys)
    np.testing.assert_array_equal(masks["buttons"] == 1, ~(presses | turns))
    assert masks["camera"].sum() == (1 if "camera" in keys else actions.NUM_CAMERA)
    assert masks["buttons"][0] == masks["camera"][actions.CAMERA_NULL] == 1


def test_it_is_never_sampled_and_what_is_left_sums_to_one():
    """D-61: probabilities, and so what is learnt, are those of the choices that there are."""
    keys = ("attack", "camera", "hotbar.3")
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(simulator, [ActionMask(keys)])
    heads.check_masks(env.spec)
    obs, _ = env.reset()
    rng = np.random.default_rng(0)
    raw = {
        name: jax.nn.log_softmax(jnp.asarray(rng.normal(size=choices), jnp.float32))
        for name, choices in env.spec.action.items()
    }
    logits = heads.masked(raw, {name: jnp.asarray(array) for name, array in obs.items()})
    samples = jax.vmap(lambda key: heads.sample(key, logits))(jax.random.split(jax.random.key(0), 400))
    decoded = pressed(samples)
    assert not decoded["attack"].any()
    assert not decoded["hotbar.3"].any()
    assert not decoded["camera"].any()
    assert decoded["forward"].any()
    assert decoded["inventory"].sum() < 10
    for name in raw:
        left = obs[heads.MASK_PREFIX + name] == 1
        assert float(jnp.exp(logits[name])[left].sum()) == pytest.approx(1, abs=1e-5)
        assert float(jnp.exp(logits[name])[~left].sum()) == 0
        within = raw[name][left] - jax.nn.logsumexp(raw[name][left])
        np.testing.assert_allclose(logits[name][left], within, atol=1e-4)
    one = jax.tree.map(lambda a: a[:1], samples)
    assert np.isfinite(heads.log_prob(jax.tree.map(lambda a: a[None], logits), one)).all()


def test_it_is_not_pressed_by_whoever_acts_without_regard_to_it():
    simulator = ScriptedSimulator()
    env = MinecraftEnvironment(simulator, [ActionMask(("attack", "camera"))])
    env.reset()
    keys = {name: np.array([name in ("attack", "forward")], int) for name in actions.BUTTONS}
    agent = actions.encode({**keys, "camera": np.array([[5.8, -10.0]])})
    given = {name: array[0].copy() for name, array in agent.items()}
    obs, *_ = env.step(given)
    did = simulator.asked[-1][1]
    assert (did["attack"], did["forward"]) == (0, 1)
    assert not np.any(did["camera"])
    assert all(np.array_equal(given[name], agent[name][0]) for name in given)  # the caller's is as it was
    assert set(obs) == set(env.spec.observation) == {"image", "action_mask.buttons", "action_mask.camera"}
    assert obs["action_mask.buttons"].dtype == np.uint8
