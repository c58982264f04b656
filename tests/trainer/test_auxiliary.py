"""Auxiliary losses: the plug-in point, and behaviour cloning."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.config import ConfigError, TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.batch import stack_fragments
from minestudio_jax.trainer.behaviour_cloning import BehaviourCloning
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.sharding import make_mesh
from minestudio_jax.trainer.state import initial_state
from minestudio_jax.trainer.update import make_update
from minestudio_jax.utils.demonstrations import save_sequence
from tests.trainer.fragments import SPEC, jitted, make_fragments, tiny_policy

CONFIG = TrainerConfig(
    batch_size_per_device=4, batches_per_iteration=2, epochs_per_iteration=2, context_length=4, learning_rate=1e-2,
    ppo_policy_coef=0.0, ppo_vf_coef=0.0, dual_clip=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """The action is told by the image's colour."""
    folder = tmp_path_factory.mktemp("demos")
    rng = np.random.default_rng(0)
    for length in (40, 6, 25):
        action = rng.integers(0, 3, length)
        image = np.zeros((length, 8, 8, 3), np.uint8)
        image[np.arange(length), :, :, action] = 200
        save_sequence(folder, {"image": image}, {"choice": action}, np.arange(length) == 0)
    return folder


def cloning(folder, coef=1.0, **options):
    name = options.pop("name", "behaviour_cloning")
    return dataclasses.replace(CONFIG, auxiliary={name: {"path": str(folder), "coef": coef, **options}})


class Weights:
    """The plug-in of a user: half the squared length of what a head's bias is, about drawn numbers."""

    def __init__(self, context_length, num_devices, wide=False):
        if context_length != CONFIG.context_length:
            raise ValueError("a context of another length")
        self._rows = 3 * num_devices + wide

    def check(self, spec):
        if "choice" not in spec.action:
            raise ValueError("there is no choice")

    def draw(self, rng):
        return rng.normal(size=(self._rows, 2)).astype(np.float32)

    def loss(self, policy, params, data):
        return 0.5 * jnp.square(data.mean() + 1.0), {"rows": jnp.float32(data.shape[0])}


def test_demonstrated_actions_become_the_policys_own(policy, demonstrations):
    """D-34."""
    config = cloning(demonstrations, batch_size_per_device=8, length=6)
    losses = AuxiliaryLosses(config, 1)
    losses.check(SPEC)
    state = initial_state(policy, config, jax.random.key(0))
    batch = stack_fragments(make_fragments(policy, state.params, 8))
    update = jax.jit(make_update(policy, config, make_mesh(config), losses))
    said = []
    for iteration in range(12):
        state, metrics, _ = update(state, batch, coefficients(config, iteration, 1), losses.draw(0, iteration))
        said.append({name: float(x) for name, x in metrics.items()})
    assert said[0]["auxiliary/behaviour_cloning/loss"] > 0.5
    assert said[-1]["auxiliary/behaviour_cloning/loss"] < 0.1
    assert said[-1]["auxiliary/behaviour_cloning/accuracy"] > 0.95
    assert said[-1]["loss/total"] == pytest.approx(said[-1]["auxiliary/behaviour_cloning/loss"], rel=1e-5)


def test_the_loss_is_the_mean_log_probability_of_the_steps_that_count(policy, demonstrations):
    loss = BehaviourCloning(
        context_length=4, num_devices=1, path=str(demonstrations), batch_size_per_device=16, length=8, burn_in=2
    )
    data, params = loss.draw(np.random.default_rng(1)), policy.init(jax.random.key(0))
    assert (data["mask"].sum(axis=1) == [6 if m else 4 for m in data["mask"][:, -1]]).all()
    got, metrics = jax.jit(partial(loss.loss, policy))(params, data)
    terms, hits = [], []
    for n in range(16):
        memory = policy.initial_state(1)
        for t in range(8):
            obs = {"image": data["obs"]["image"][n : n + 1, t : t + 1]}
            output, memory = jitted(policy)(params, obs, data["first"][n : n + 1, t : t + 1], memory)
            action = {"choice": data["action"]["choice"][n : n + 1, t : t + 1]}
            if data["mask"][n, t]:
                terms.append(-float(heads.log_prob(output.logits, action)[0, 0]))
                hits.append(int(heads.mode(output.logits)["choice"].item() == action["choice"].item()))
    assert float(got) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits))


def test_what_is_drawn_follows_from_seed_and_iteration_alone(demonstrations):
    losses = AuxiliaryLosses(cloning(demonstrations), 2)
    (one,), (same,), (other,) = losses.draw(1, 5), losses.draw(1, 5), losses.draw(1, 6)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert one["obs"]["image"].shape == (2, 2, 8, 4, 8, 8, 3)  # epochs, steps, windows of both devices
    assert not np.array_equal(one["obs"]["image"], other["obs"]["image"])
    assert not np.array_equal(one["obs"]["image"][0, 0], one["obs"]["image"][0, 1])


def test_in_value_warm_up_nothing_is_cloned(policy, demonstrations):
    losses = AuxiliaryLosses(cloning(demonstrations), 1)
    data = jax.tree.map(lambda x: x[0, 0], losses.draw(0, 0))
    params = policy.init(jax.random.key(0))
    gradient, total, metrics = losses.gradient(policy, params, data, jnp.bool_(True))
    assert total == 0
    assert metrics["auxiliary/behaviour_cloning/loss"] > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
    gradient, _, _ = losses.gradient(policy, params, data, jnp.bool_(False))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_a_loss_of_ones_own_is_named_by_its_import_path(policy):
    """D-34."""
    name = "tests.trainer.test_auxiliary:Weights"
    config = dataclasses.replace(CONFIG, auxiliary={name: {"coef": 0.25}})
    losses = AuxiliaryLosses(config, 2)
    losses.check(SPEC)
    data = jax.tree.map(lambda x: x[0, 0], losses.draw(3, 0))
    params = policy.init(jax.random.key(0))
    gradient, total, metrics = losses.gradient(policy, params, data, jnp.bool_(False))
    assert float(total) == pytest.approx(0.25 * float(metrics[f"auxiliary/{name}/loss"]))
    assert float(metrics[f"auxiliary/{name}/rows"]) == 6
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_documented_example_works(policy):
    page = (Path(__file__).parents[2] / "docs/auxiliary-losses.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(compile(block, "docs/auxiliary-losses.md", "exec"), scope)
    loss = scope["Undecided"](context_length=4, num_devices=2, rows=1, height=8, width=8)
    loss.check(SPEC)
    params = policy.init(jax.random.key(0))
    total, metrics = loss.loss(policy, params, loss.draw(np.random.default_rng(0)))
    assert float(metrics["entropy"]) == -float(total) == pytest.approx(np.log(3), abs=0.05)
    with pytest.raises(ValueError, match="set height and width"):
        scope["Undecided"](context_length=4, num_devices=2).check(SPEC)


def test_wrong_settings_are_refused_with_name_and_remedy(demonstrations, tmp_path):
    own = "tests.trainer.test_auxiliary:Weights"
    for auxiliary, words in (
        ({"cloning": {"coef": 1}}, "known are behaviour_cloning"),
        ({"no.module:thing": {"coef": 1}}, "cannot import"),
        ({"behaviour_cloning": 1}, "not a JSON object of options"),
        ({"behaviour_cloning": {"path": str(demonstrations)}}, "coef=None"),
        ({"behaviour_cloning": {"path": str(demonstrations), "coef": True}}, "coef=True"),
        ({"behaviour_cloning": {"path": str(tmp_path / "none"), "coef": 1}}, "is not a folder"),
        ({"behaviour_cloning": {"path": str(demonstrations), "coef": 1, "burn_in": 4}}, "burn_in"),
        (
            {"behaviour_cloning": {"path": str(demonstrations), "coef": 1, "length": 50, "burn_in": 40}},
            "burn_in=40 leaves nothing to learn from: the longest sequence",
        ),
        ({"behaviour_cloning": {"path": str(demonstrations), "coef": 1, "legnth": 4}}, "legnth"),
        ({own: {"coef": 1, "width": 4}}, "width"),
    ):
        with pytest.raises(ConfigError) as error:
            AuxiliaryLosses(dataclasses.replace(CONFIG, auxiliary=auxiliary), 1)
        assert "trainer.auxiliary" in str(error.value)
        assert words in str(error.value)
    assert AuxiliaryLosses(cloning(demonstrations, length=50, burn_in=39), 1)  # of the longest one step is left
    with pytest.raises(ValueError, match=r"behaviour_cloning: .*action.choice has 0 to 2"):
        AuxiliaryLosses(cloning(demonstrations), 1).check(dataclasses.replace(SPEC, action={"choice": 2}))
    with pytest.raises(ValueError, match="cannot be spread over 2 devices"):
        AuxiliaryLosses(dataclasses.replace(CONFIG, auxiliary={own: {"coef": 1, "wide": True}}), 2).check(SPEC)
