"""The action distribution against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies import heads


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return {
        name: jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32))
        for name, n in (("buttons", 7), ("camera", 5))
    }


def test_log_prob_and_entropy_add_up_over_components(logits):
    action = {"buttons": jnp.full((2, 3, 1), 4, jnp.int32), "camera": jnp.full((2, 3, 1), 2, jnp.int32)}
    wanted = logits["buttons"][..., 4] + logits["camera"][..., 2]
    np.testing.assert_allclose(heads.log_prob(logits, action), wanted, rtol=1e-6)
    joint = (logits["buttons"][..., :, None] + logits["camera"][..., None, :]).reshape(2, 3, -1)
    np.testing.assert_allclose(heads.entropy(logits), -(jnp.exp(joint) * joint).sum(-1), rtol=1e-5)


def test_kl_is_zero_to_itself_and_positive_to_others(logits):
    np.testing.assert_allclose(heads.kl(logits, logits), 0.0, atol=1e-5)
    other = {name: jax.nn.log_softmax(2 * l) for name, l in logits.items()}
    assert (np.asarray(heads.kl(logits, other)) > 1e-3).all()


def test_samples_follow_the_distribution(logits):
    """D-27."""
    one = {name: l[0, 0] for name, l in logits.items()}
    many = {name: jnp.broadcast_to(l, (20000, *l.shape)) for name, l in one.items()}
    action = heads.sample(jax.random.key(0), many)
    for name in one:
        assert action[name].shape == (20000, 1)
        assert action[name].dtype == jnp.int32
        share = np.bincount(np.asarray(action[name])[:, 0], minlength=one[name].size) / 20000
        np.testing.assert_allclose(share, np.exp(one[name]), atol=0.015)
    assert {name: int(a[0]) for name, a in heads.mode(one).items()} == {
        name: int(np.argmax(l)) for name, l in one.items()
    }


def test_choices_that_are_ruled_out_are_never_drawn_and_take_part_in_nothing(logits):
    """D-61, D-27."""
    mask = np.ones((2, 3, 7), np.uint8)
    mask[0, :, [1, 4, 5]] = 0
    masked = heads.masked(logits, {heads.MASK_PREFIX + "buttons": jnp.asarray(mask)})
    np.testing.assert_array_equal(masked["camera"], logits["camera"])
    np.testing.assert_allclose(masked["buttons"][1], logits["buttons"][1], atol=1e-6)
    allowed = np.exp(logits["buttons"][0]) * mask[0]
    wanted = allowed / allowed.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(masked["buttons"][0]), wanted, rtol=1e-5)
    nats = -(wanted * np.log(np.where(wanted > 0, wanted, 1))).sum(-1)
    alone = {"buttons": masked["buttons"]}
    np.testing.assert_allclose(heads.entropy(alone)[0], nats, rtol=1e-5)
    np.testing.assert_allclose(heads.kl(alone, alone), 0, atol=1e-6)
    many = {"buttons": jnp.broadcast_to(masked["buttons"][0, 0], (5000, 7))}
    assert set(np.unique(heads.sample(jax.random.key(0), many)["buttons"])) == {0, 2, 3, 6}


def test_what_is_ruled_out_gets_no_gradient_and_the_gradient_is_finite():
    raw, mask = jnp.asarray([[0.3, -0.2, 0.9]]), {heads.MASK_PREFIX + "move": jnp.asarray([[True, True, False]])}

    def loss(raw):
        head = heads.masked({"move": raw}, mask)
        return (heads.log_prob(head, {"move": jnp.zeros((1, 1), jnp.int32)}) - 0.1 * heads.entropy(head)).sum()

    gradient = np.asarray(jax.grad(loss)(raw))[0]
    assert np.isfinite(gradient).all()
    assert gradient[2] == 0
    assert gradient[0] != 0


def test_masks_that_do_not_fit_are_refused():
    def spec(name, *shape, dtype="uint8"):
        return EnvironmentSpec({name: ArraySpec(shape, dtype)}, {"move": 3})

    heads.check_masks(spec("action_mask.move", 3))
    for wrong in (spec("action_mask.move", 4), spec("action_mask.jump", 3), spec("action_mask.move", 3, dtype="int32")):
        with pytest.raises(ValueError, match=r"'action_mask\..*one entry for each choice"):
            heads.check_masks(wrong)
