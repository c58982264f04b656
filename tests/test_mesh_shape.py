"""What trainer.mesh may say, and what follows from it."""

from __future__ import annotations

import dataclasses

import pytest

from minestudio_jax.config import Config, ConfigError, ReplayConfig, TrainerConfig
from minestudio_jax.config_checks import validate
from minestudio_jax.mesh_shape import fragments_per_iteration, mesh_shape, sized_replay


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        ("data:-1", 8, (8, 1, 1)),
        ("data:-1,fsdp:4", 8, (2, 4, 1)),
        ("tensor:2, fsdp:-1", 8, (1, 4, 2)),
        ("data:2,fsdp:2,tensor:2", 8, (2, 2, 2)),
        ("", 1, (1, 1, 1)),
    ],
)
def test_the_axes_take_the_devices_they_ask_for(mesh, devices, shape):
    assert tuple(mesh_shape(mesh, devices).values()) == shape


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("rows:2", "no axis 'rows'; known are data, fsdp, tensor"),
        ("data", "'data' is not an axis and its devices"),
        ("data:0", "'data:0' is not an axis and its devices"),
        ("data:-2", "'data:-2' is not"),
        ("data:1,data:2", "named twice"),
        ("data:-1,fsdp:-1", "only one axis"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(mesh, said):
    with pytest.raises(ConfigError, match=said):
        validate(Config(trainer=TrainerConfig(mesh=mesh)))


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ConfigError, match=r"a multiple of 3 devices, the learner has 8"):
        mesh_shape("data:-1,fsdp:3", 8)
    with pytest.raises(ConfigError, match=r"needs 4 devices, the learner has 8; give -1 to one axis"):
        mesh_shape("fsdp:4", 8)


def test_devices_that_share_a_matrix_share_a_batch():
    config = TrainerConfig(batch_size_per_device=2, batches_per_iteration=3)
    assert fragments_per_iteration(config, 8) == 48
    split = dataclasses.replace(config, mesh="data:-1,fsdp:2,tensor:2")
    assert fragments_per_iteration(split, 8) == 24


def test_the_replay_buffer_grows_with_the_devices_unless_it_is_told_its_size():
    trainer = TrainerConfig(batch_size_per_device=3, batches_per_iteration=2)
    for devices, reuse, of_each, chunks in ((1, 1, 1, 12), (8, 1, 1, 96), (8, 2, 1, 192), (2, 1, 5, 6)):
        replay = ReplayConfig(max_reuse=reuse, fragments_per_chunk=of_each)
        assert sized_replay(Config(trainer=trainer, replay=replay), devices).max_chunks == chunks
    told = Config(trainer=trainer, replay=ReplayConfig(max_chunks=12))
    assert sized_replay(told, 2) == told.replay
    with pytest.raises(ConfigError, match=r"on 3 devices takes 18 fragments, replay.max_chunks=12 .* 0 makes"):
        sized_replay(told, 3)
