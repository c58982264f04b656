from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.batch import Share
from minestudio_jax.trainer.loader import FragmentLoader
from tests.rollout.processes import wait_until
from tests.trainer.fragments import cut, make_fragments, tiny_policy


@pytest.fixture(scope="module")
def fragments():
    policy = tiny_policy()
    return make_fragments(policy, policy.init(jax.random.key(0)), 4, version=3)


@pytest.fixture
def open_loader():
    loaders = []

    def make(source, ahead=0):
        placement = sharding.along_batch(sharding.make_mesh(TrainerConfig()))
        loaders.append(FragmentLoader(source, placement, ahead, {}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def test_a_batch_is_on_the_device_and_says_what_it_holds(open_loader, fragments):
    loader = open_loader(lambda timeout_s, ahead: Share.whole([cut(fragments[0], 5), *fragments[1:]]))
    loaded = loader.next(30.0)
    assert isinstance(loaded.batch.reward, jax.Array)
    assert loaded.steps == 5 + 3 * 8
    assert [m.version_first for m in loaded.metadata] == [3] * 4
    assert [m.env_id for m in loaded.metadata] == [0, 0, 1, 1]
    np.testing.assert_array_equal(loaded.batch.reward[1], fragments[1].reward)
    np.testing.assert_array_equal(loaded.batch.version, 3)


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_is_fetched_ahead_than_asked(open_loader, fragments, ahead):
    """Data fetched early are data of an older policy: prefetching is exact."""
    fetched = []

    def source(timeout_s, ahead):
        fetched.append(1)
        return Share.whole(fragments)

    loader = open_loader(source, ahead)
    time.sleep(0.2)
    assert wait_until(lambda: len(fetched) == ahead)
    for i in range(3):
        assert loader.next(30.0) is not None
        assert wait_until(lambda i=i: len(fetched) == ahead + i + 1)
    time.sleep(0.1)
    assert len(fetched) == ahead + 3


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_source_is_told_how_many_iterations_lie_between(open_loader, fragments, prefetch):
    """What staleness is judged by: a batch fetched early is trained on by a later policy."""
    told = []

    def source(timeout_s, ahead):
        told.append(ahead())
        return Share.whole(fragments)

    loader = open_loader(source, prefetch)
    assert wait_until(lambda: len(told) == prefetch)
    for i in range(4):
        assert loader.next(30.0) is not None
        assert wait_until(lambda i=i: len(told) == prefetch + i + 1)
    assert told == [*range(prefetch), *[prefetch] * 4]


def test_waiting_ends_in_time_and_the_request_stays(open_loader, fragments):
    """D-33."""
    there = threading.Event()
    fetched = []

    def source(timeout_s, ahead):
        if not there.wait(timeout_s):
            return None
        fetched.append(1)
        return Share.whole(fragments)

    loader = open_loader(source)
    begin = time.monotonic()
    assert loader.next(0.2) is None
    assert loader.next(0.2) is None
    assert time.monotonic() - begin < 5
    there.set()
    assert loader.next(30.0) is not None
    time.sleep(0.1)
    assert len(fetched) == 1


def test_what_the_source_raises_reaches_the_learner(open_loader):
    def source(timeout_s, ahead):
        raise OSError("the buffer is gone")

    with pytest.raises(OSError, match="the buffer is gone"):
        open_loader(source).next(30.0)
