"""Demonstrations on disk: written, read back, and refused where they are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.utils.demonstrations import DemonstrationError, Demonstrations, save_sequence

SPEC = EnvironmentSpec({"image": ArraySpec((2, 2, 3), "uint8")}, {"choice": 4})


def sequence(number, length):
    """Pixel, action and place of a step follow from each other."""
    image = np.zeros((length, 2, 2, 3), np.uint8)
    image[:, 0, 0, 0], image[:, 0, 0, 1] = number, np.arange(length)
    return {"image": image}, {"choice": (np.arange(length) + number) % 4}, np.arange(length) % 10 == 0


@pytest.fixture
def folder(tmp_path):
    for number, length in enumerate((30, 3, 50)):
        save_sequence(tmp_path / "demos", *sequence(number, length))
    return tmp_path / "demos"


def test_windows_are_pieces_of_what_was_written(folder):
    windows = Demonstrations(folder).draw(np.random.default_rng(0), 200, 8)
    assert windows.obs["image"].shape == (200, 8, 2, 2, 3)
    assert windows.action["choice"].dtype == np.int32
    assert windows.first[:, 0].all()
    for image, action, first, mask in zip(
        windows.obs["image"], windows.action["choice"], windows.first, windows.mask, strict=True
    ):
        number, place = image[0, 0, 0, :2]
        genuine = int(mask.sum())
        assert genuine == (3 if number == 1 else 8)
        places = place + np.arange(genuine)
        np.testing.assert_array_equal(image[:genuine, 0, 0, 1], places)
        np.testing.assert_array_equal(action[:genuine, 0], (places + number) % 4)
        np.testing.assert_array_equal(first[1:genuine], places[1:] % 10 == 0)
        assert not image[genuine:].any()


def test_every_place_is_drawn_equally_often(folder):
    """23 + 1 + 43 beginnings of eight steps."""
    image = Demonstrations(folder).draw(np.random.default_rng(0), 6700, 8).obs["image"][:, 0, 0, 0]
    counts = np.unique(image[:, :2], axis=0, return_counts=True)[1]
    assert len(counts) == 67
    assert 60 < counts.min() <= counts.max() < 140


def test_they_fit_the_environments_or_are_refused_with_the_reason(folder):
    demonstrations = Demonstrations(folder)
    assert demonstrations.steps == 83
    demonstrations.check(SPEC)
    image = SPEC.observation["image"]
    for spec, words in (
        (EnvironmentSpec({"image": ArraySpec((4, 4, 3), "uint8")}, {"choice": 4}), "uint8 (2, 2, 3) a step"),
        (EnvironmentSpec({"image": ArraySpec((2, 2, 3), "float32")}, {"choice": 4}), "float32"),
        (EnvironmentSpec({"image": image}, {"choice": 3}), "action.choice has 0 to 3, the environments 0 to 2"),
        (EnvironmentSpec({"image": image}, {"buttons": 4}), "action.buttons"),
    ):
        with pytest.raises(DemonstrationError) as error:
            demonstrations.check(spec)
        assert words in str(error.value)


def test_files_that_do_not_go_together_are_refused_by_name(folder, tmp_path):
    with pytest.raises(DemonstrationError, match="is not a folder"):
        Demonstrations(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DemonstrationError, match="holds no sequences"):
        Demonstrations(tmp_path / "empty")

    def refused(name, array, words):
        file = folder / "000002" / name
        before = file.read_bytes()
        if isinstance(array, bytes):
            file.write_bytes(array)
        else:
            np.save(file, array, allow_pickle=True)
        with pytest.raises(DemonstrationError) as error:
            Demonstrations(folder)
        assert words in str(error.value)
        assert "000002" in str(error.value)
        file.write_bytes(before)

    refused("action.choice.npy", np.zeros(4, int), "shape (4,), first.npy 3 steps")
    refused("action.choice.npy", np.zeros(3), "must be integers [L]")
    refused("action.choice.npy", np.array([None] * 3), "is not a NumPy file that can be mapped")
    refused("obs.image.npy", b"PNG", "is not a NumPy file that can be mapped")
    refused("first.npy", np.zeros(3, int), "must be there, bool")
    refused("first.npy", np.zeros(0, bool), "has no steps")


def test_a_sequence_appears_when_it_is_complete_and_none_is_overwritten(folder):
    (folder / "000004.partial").mkdir()
    assert Demonstrations(folder).steps == 83
    assert save_sequence(folder, *sequence(3, 5)).name == "000004"
    assert Demonstrations(folder).steps == 88
