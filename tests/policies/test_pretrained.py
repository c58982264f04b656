"""Published weights in and out."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle

import jax
import numpy as np
import pytest

from minestudio_jax.policies.pretrained import (
    WeightsError,
    export_vpt,
    load_vpt,
    load_weights,
    read_model_file,
    write_model_file,
)
from minestudio_jax.policies.torch_files import UnsafeFileError, read_torch_file, write_torch_file
from minestudio_jax.policies.vpt_shape import VPTShape
from tests.policies.vpt_golden import rebuilt


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_model_files(golden, name):
    """vpt_tiny.model (its temperature is a string) and vpt_slim128.model (it has a size that nobody needs)."""
    shape, config = read_model_file(golden / f"{name}.model"), json.loads((golden / f"{name}.config.json").read_text())
    found = json.dumps(config)
    assert shape.temperature == 2.0
    for value in (shape.hidsize, shape.heads, shape.layers, shape.pointwise_ratio):
        assert str(value) in found
    assert shape.channels == (4, 8, 8)
    assert shape.memory == {"vpt_tiny": 8, "vpt_slim128": 128}[name]


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_weights_survive_the_way_in_and_out_bit_for_bit(golden, tmp_path, name):
    policy, params = load_vpt(golden / f"{name}.model", golden / f"{name}.weights")
    export_vpt(policy, params, tmp_path / "out.weights")
    before, after = read_torch_file(golden / f"{name}.weights"), read_torch_file(tmp_path / "out.weights")
    assert set(before) == set(after)
    for tensor in before:
        assert before[tensor].shape == after[tensor].shape
        assert before[tensor].tobytes() == after[tensor].tobytes(), tensor
    _, again = load_vpt(golden / f"{name}.model", tmp_path / "out.weights")
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))


@pytest.mark.parametrize("name", ["vpt_tiny.legacy.weights", "vpt_tiny.lightning.ckpt"])
def test_golden_containers_give_the_same_parameters(golden, tmp_path, name):
    _, wanted = load_vpt(golden / "vpt_tiny.model", golden / "vpt_tiny.weights")
    _, found = load_vpt(golden / "vpt_tiny.model", rebuilt(golden, name, tmp_path))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(wanted)))


def test_missing_and_misshapen_tensors_are_all_named_and_unknown_ones_left_out(golden, tmp_path, caplog):
    shape = read_model_file(golden / "vpt_tiny.model")
    tensors = read_torch_file(golden / "vpt_tiny.weights")
    write_torch_file(tmp_path / "more.weights", {**tensors, "aux_head.weight": np.zeros(3, np.float32)})
    with caplog.at_level(logging.WARNING):
        load_weights(shape, tmp_path / "more.weights")
    assert "aux_head.weight" in caplog.text
    broken = {name: tensor for name, tensor in tensors.items() if name != "net.final_ln.bias"}
    broken["pi_head.camera.linear_layer.weight"] = np.zeros((11, 48), np.float32)
    write_torch_file(tmp_path / "broken.weights", broken)
    with pytest.raises(WeightsError) as error:
        load_weights(shape, tmp_path / "broken.weights")
    assert "net.final_ln.bias is missing" in str(error.value)
    assert "pi_head.camera.linear_layer.weight has shape [11, 48] instead of [121, 48]" in str(error.value)


def test_weights_with_other_heads_are_refused(golden):
    shape = dataclasses.replace(read_model_file(golden / "vpt_tiny.model"), heads=6)
    with pytest.raises(WeightsError, match="3 attention heads, not 6"):
        load_weights(shape, golden / "vpt_tiny.weights")


def test_a_written_model_file_says_the_same(tmp_path):
    shape = VPTShape(24, 3, 2, 6, 2, (4, 4), (16, 24), 1.5)
    write_model_file(shape, tmp_path / "x.model")
    assert read_model_file(tmp_path / "x.model") == shape


def test_model_files_of_other_networks_are_refused(golden, tmp_path):
    with open(golden / "vpt_tiny.model", "rb") as file:
        saved = pickle.load(file)
    path = tmp_path / "other.model"
    for change, words in (
        ({"recurrence_type": "lstm"}, "recurrence_type='lstm'"),
        ({"attention_mask_style": "none"}, "attention_mask_style"),
        ({"init_norm_kwargs": {"batch_norm": True}}, "init_norm_kwargs.batch_norm=True"),
        ({"attention_heads": 5}, "heads"),
    ):
        other = pickle.loads(pickle.dumps(saved))
        other["model"]["args"]["net"]["args"].update(change)
        path.write_bytes(pickle.dumps(other))
        with pytest.raises(WeightsError, match=words):
            read_model_file(path)
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(WeightsError, match="no VPT model file"):
        read_model_file(path)
    path.write_bytes(pickle.dumps({"model": VPTShape()}))
    with pytest.raises(UnsafeFileError):
        read_model_file(path)
