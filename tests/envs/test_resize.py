from __future__ import annotations

import numpy as np
import pytest

from minestudio_jax.envs.resize import resize_bilinear


@pytest.mark.parametrize("case", ["smooth", "noise_small", "noise_half", "odd"])
def test_golden_resize(golden, case):
    """resize.npz, OpenCV's INTER_LINEAR: bit for bit."""
    data = np.load(golden / "resize.npz")
    width, height = data[f"{case}_size_wh"]
    np.testing.assert_array_equal(resize_bilinear(data[f"{case}_in"], height, width), data[f"{case}_out"])


def test_the_same_size_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_bilinear(image, 12, 10), image)


def test_one_colour_stays_that_colour():
    image = np.full((37, 53, 3), 201, np.uint8)
    assert (resize_bilinear(image, 128, 128) == 201).all()
    assert (resize_bilinear(image, 9, 7) == 201).all()
