"""How many environments are dealt with at a time."""

from __future__ import annotations

import pytest

from minestudio_jax.rollout.env_pool import fitting


@pytest.mark.parametrize("sizes", [(1,), (16,), (1, 2, 4, 8, 16), (1, 2, 4, 8, 12), (3, 7)])
def test_a_batch_is_as_large_as_can_be_with_little_padding(sizes):
    """D-47: somebody is served whenever somebody is ready, and never more than the largest batch."""
    for ready in range(1, 40):
        number = fitting(ready, sizes)
        assert 1 <= number <= min(ready, sizes[-1])
        size = min(size for size in sizes if size >= number)
        assert size == sizes[0] or (size - number) / size < 0.25
        if number < ready:  # then the next size would be padded by a quarter, or there is none
            larger = [size for size in sizes if size > number]
            assert not larger or (larger[0] - ready) / larger[0] >= 0.25


def test_who_does_not_fit_waits_for_the_next_batch():
    assert [fitting(ready, (1, 2, 4, 8)) for ready in range(1, 10)] == [1, 2, 2, 4, 4, 4, 7, 8, 8]
    assert [fitting(ready, (8,)) for ready in range(1, 10)] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
