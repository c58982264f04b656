"""The action distribution against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
