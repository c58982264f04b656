"""VPT's action space against the tables and cases that OpenAI's code produced."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.envs import actions


@pytest.fixture(scope="module")
def cases(golden):
    return np.load(golden / "action_mapping.npz")


def env_actions(keys, camera, names):
    return {**{str(name): keys[:, i] for i, name in enumerate(names)}, "camera": camera}


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_encoding_equals_the_reference_on_every_case(cases, precision):
    suffix = "_f32" if precision == "float32" else ""
    camera = cases["in_camera_deg"].astype(precision)
    given = env_actions(cases["in_keys"], camera, cases["key_names"])
    given |= {name: cases["in_extra"][:, i] for i, name in enumerate(("ESC", "pickItem", "swapHands"))}
    agent = actions.encode(given)
    np.testing.assert_array_equal(agent["buttons"][:, 0], cases["buttons" + suffix])
    np.testing.assert_array_equal(agent["camera"][:, 0], cases["camera" + suffix])
    assert agent["buttons"].dtype == agent["camera"].dtype == np.int32


def test_decoding_equals_the_reference_on_every_case(cases):
    for buttons, camera, back in (("buttons", "camera", "back"), ("agent_buttons", "agent_camera", "agent_back")):
        decoded = actions.decode({"buttons": cases[buttons][:, None], "camera": cases[camera][:, None]})
        for i, name in enumerate(cases["key_names"]):
            np.testing.assert_array_equal(decoded[str(name)], cases[f"{back}_keys"][:, i], err_msg=str(name))
        np.testing.assert_allclose(decoded["camera"], cases[f"{back}_camera_deg"], rtol=0, atol=1e-12)


def test_the_decode_tables_are_the_reference_tables(golden):
    tables = np.load(golden / "action_tables.npz")
    assert tuple(tables["key_names"]) == actions.BUTTONS
    np.testing.assert_array_equal(actions.KEY_TABLE, tables["button_idx_to_keys"])
    np.testing.assert_array_equal(~actions.CAMERA_ON_TABLE[:-1], tables["button_idx_camera_off"][:-1])
    np.testing.assert_allclose(actions.CAMERA_DEG_TABLE, tables["camera_idx_to_deg"], rtol=0, atol=1e-12)
    assert tables["camera_null_idx"] == actions.CAMERA_NULL


@pytest.mark.parametrize(("precision", "key"), [("float64", "vpt_sweep_bins"), ("float32", "vpt_sweep_bins_f32")])
def test_the_camera_is_quantised_as_in_the_reference(golden, precision, key):
    mulaw = np.load(golden / "mulaw.npz")
    np.testing.assert_array_equal(actions.camera_to_bins(mulaw["sweep_deg"].astype(precision)), mulaw[key])


def test_every_agent_action_survives_the_way_to_the_simulator_and_back():
    buttons = np.arange(actions.NUM_BUTTONS)[:, None]
    moving = np.full_like(buttons, 7 * actions.CAMERA_BINS + 2)
    camera = np.where(actions.CAMERA_ON_TABLE[:, None], moving, actions.CAMERA_NULL)
    camera[actions.INVENTORY] = actions.CAMERA_NULL  # opening the inventory excludes everything else
    back = actions.encode(actions.decode({"buttons": buttons, "camera": camera}))
    np.testing.assert_array_equal(back["buttons"], buttons)
    np.testing.assert_array_equal(back["camera"], camera)


def test_the_null_action_does_nothing():
    decoded = actions.decode(actions.null_action(3))
    assert all(not decoded[name].any() for name in actions.BUTTONS)
    assert not decoded["camera"].any()


def test_discrete_choices_are_agent_actions_that_do_what_they_say():
    choices = actions.DiscreteActions.make(
        {"dig left": (("attack",), 0.0, -5.81), "run": (("forward", "sprint"), 0.0, 0.0)}
    )
    decoded = actions.decode({"buttons": choices.buttons[:, None], "camera": choices.camera[:, None]})
    assert choices.names == ("dig left", "run")
    assert decoded["attack"].tolist() == [1, 0]
    assert decoded["forward"].tolist() == decoded["sprint"].tolist() == [0, 1]
    np.testing.assert_allclose(decoded["camera"], [[0, -5.81], [0, 0]], atol=0.01)
