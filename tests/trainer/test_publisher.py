from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.trainer.publisher import KEPT_VERSIONS, ParamPublisher, Publication
from minestudio_jax.utils import policy_store
from tests.rollout.processes import wait_until

ABSTRACT = {"w": jax.ShapeDtypeStruct((2, 2), np.float32), "statistics": jax.ShapeDtypeStruct((2,), np.float32)}


def params(version):
    return {"w": jnp.full((2, 2), version, jnp.float32), "statistics": jnp.full(2, version, jnp.float32)}


def same(tree, version):
    return all(np.all(leaf == np.float32(version)) for leaf in jax.tree.leaves(tree))


@pytest.fixture
def opened(tmp_path):
    """Makes publishers that write to `sent` and `kept`, and closes them."""
    publishers = []

    def make(on_published=lambda version, path: None, together=False, **settings):
        publication = Publication(tmp_path / "sent", on_published, **settings)
        publishers.append(ParamPublisher(tmp_path / "kept", publication, together=together))
        return publishers[-1]

    yield make
    for publisher in publishers:
        publisher.close()


def test_a_version_is_told_only_when_it_is_complete_and_holds_its_parameters(opened):
    told = []
    publisher = opened(lambda version, path: told.append((version, policy_store.load_version(path, ABSTRACT))))
    publisher.publish(3, params(3))
    assert publisher.flush(30.0)
    ((version, loaded),) = told
    assert version == 3
    assert same(loaded, 3)


def test_parameters_may_be_donated_as_soon_as_publish_returns(opened):
    told = []
    publisher = opened(lambda version, path: told.append(policy_store.load_version(path, ABSTRACT)))
    given = params(1)
    publisher.publish(1, given)
    given["w"].delete()
    publisher.close(30.0)
    assert same(told[0], 1)


def test_while_one_version_is_written_those_that_are_replaced_are_not_held(opened):
    blocked, go_on = threading.Event(), threading.Event()

    def slow(version, path):
        blocked.set()
        assert go_on.wait(30.0)

    def held():
        return sum(array.shape == (123, 45) for array in jax.live_arrays())

    before = held()
    publisher = opened(slow)
    for version in range(1, 20):
        given = {"w": jnp.full((123, 45), version, jnp.float32)}
        publisher.publish(version, given)
        assert blocked.wait(30.0)
        del given
        assert held() - before <= 3
    go_on.set()
    assert publisher.flush(30.0)
    publisher.publish(20, {"w": jnp.zeros((123, 45), jnp.float32)})
    assert publisher.flush(30.0)
    assert wait_until(lambda: held() - before <= 1)


def test_the_learner_never_waits_and_the_newest_version_wins(opened):
    """D-56."""
    told, blocked, go_on = [], threading.Event(), threading.Event()

    def slow(version, path):
        told.append(version)
        blocked.set()
        assert go_on.wait(30.0)

    publisher = opened(slow)
    publisher.publish(1, params(1))
    assert blocked.wait(30.0)
    for version in range(2, 7):
        publisher.publish(version, params(version))
    assert not publisher.flush(0.05)
    go_on.set()
    assert publisher.flush(30.0)
    assert told == [1, 6]


def test_only_the_newest_versions_are_there_to_be_read(opened, tmp_path):
    publisher = opened()
    for version in range(1, 7):
        publisher.publish(version, params(version))
        assert publisher.flush(30.0)
    assert policy_store.list_versions(tmp_path / "sent") == [4, 5, 6]
    assert KEPT_VERSIONS == 3


def test_the_run_keeps_the_first_version_and_those_it_asks_for(opened, tmp_path):
    publisher = opened()
    publisher.keep()  # before there is one
    for version in range(1, 10):
        publisher.publish(version, params(version))
        if version % 2 == 0:
            publisher.keep()
        assert publisher.flush(30.0)
        if version == 3:
            assert policy_store.list_versions(tmp_path / "kept") == [1, 2]
    assert policy_store.list_versions(tmp_path / "kept") == [4, 6, 8]
    assert same(policy_store.load_version(policy_store.version_path(tmp_path / "kept", 8), ABSTRACT), 8)


def test_a_publisher_to_which_nobody_listens_only_keeps(tmp_path):
    publisher = ParamPublisher(tmp_path / "kept", None)
    for version in range(1, 4):
        publisher.publish(version, params(version))
    publisher.keep()
    assert publisher.flush(30.0)
    publisher.close()
    assert policy_store.list_versions(tmp_path / "kept")[-1] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_in_bfloat16_matrices_are_rounded_on_their_way_and_whole_where_they_are_kept(opened, tmp_path):
    told = []
    publisher = opened(lambda version, path: told.append(path), dtype="bfloat16")
    value = 1.0 + 2.0**-12  # has no place in bfloat16's 8 bits
    publisher.publish(1, {"w": jnp.full((2, 2), value), "statistics": jnp.full(2, value)})
    publisher.keep_as_best(1.0)
    assert publisher.flush(30.0)
    sent = policy_store.load_version(told[0], ABSTRACT)
    assert sent["w"].dtype == np.float32
    assert same(sent["w"], 1.0)
    assert same(sent["statistics"], value)
    for path in (policy_store.version_path(tmp_path / "kept", 1), policy_store.best_path(tmp_path / "kept")):
        assert same(policy_store.load_version(path, ABSTRACT), value)


def test_a_failure_to_write_is_told_to_the_learner(opened, tmp_path):
    (tmp_path / "sent").write_text("in the way")
    publisher = opened()
    publisher.publish(1, params(1))
    with pytest.raises(RuntimeError, match="disk full or read-only"):
        publisher.flush(30.0)
    with pytest.raises(RuntimeError, match=str(tmp_path / "sent")):
        publisher.publish(2, params(2))


def test_where_memory_fails_versions_go_through_the_run_directory(opened, tmp_path, caplog):
    told = []
    publisher = opened(lambda version, path: told.append(path), shared=tmp_path / "instead")
    publisher.publish(1, params(1))
    assert publisher.flush(30.0)
    policy_store.remove_versions(tmp_path / "sent", keep=0)
    (tmp_path / "sent").rmdir()
    (tmp_path / "sent").write_text("in the way")
    for version in (2, 3):
        publisher.publish(version, params(version))
        assert publisher.flush(30.0)
    assert [path.parent.name for path in told] == ["sent", "instead", "instead"]
    assert same(policy_store.load_version(told[-1], ABSTRACT), 3)
    assert caplog.text.count("cannot be written: policy versions go through") == 1


def test_the_best_version_is_the_one_that_was_newest_when_it_was_said_and_outlives_its_number(opened, tmp_path):
    reached, go_on = threading.Event(), threading.Event()

    def wait_at_two(version, path):
        if version == 2:
            reached.set()
            assert go_on.wait(30.0)

    publisher = opened(wait_at_two)
    publisher.publish(1, params(1))
    assert publisher.flush(30.0)
    publisher.publish(2, params(2))
    publisher.keep_as_best(1.0)
    assert reached.wait(30.0)
    publisher.publish(3, params(3))  # before the other was written
    go_on.set()
    for version in range(4, 4 + KEPT_VERSIONS):
        publisher.publish(version, params(version))
        publisher.keep()
        assert publisher.flush(30.0)
    kept = tmp_path / "kept"
    assert policy_store.list_versions(kept) == list(range(4, 4 + KEPT_VERSIONS))
    assert same(policy_store.load_version(policy_store.best_path(kept), ABSTRACT), 2)
    policy_store.keep_as_best(kept, 4, 2.0)
    assert same(policy_store.load_version(policy_store.best_path(kept), ABSTRACT), 4)


def test_a_best_version_that_a_killed_process_has_left_is_replaced_by_better_ones_only(opened, tmp_path):
    """What it was worth lies beside it: the checkpoint that the next process continues from may know of none."""
    for version, score, best in ((5, 3.0, 5), (3, 2.0, 5), (4, 4.0, 4)):  # a publisher each, as with every start
        publisher = opened()
        publisher.publish(version, params(version))
        publisher.keep_as_best(score)
        assert publisher.flush(30.0)
        path = policy_store.best_path(tmp_path / "kept")
        assert same(policy_store.load_version(path, ABSTRACT), best)
    (path / "score.json").unlink()  # of a run that has begun when there was none
    publisher.keep_as_best(1.0)
    assert publisher.flush(30.0)
    assert same(policy_store.load_version(path, ABSTRACT), 4)


def test_hosts_that_write_together_begin_when_all_are_told_to_and_the_newest_version_wins(opened, tmp_path):
    """D-56, with parameters split over hosts: each must write the same versions in the same order as the others."""
    told, blocked, go_on = [], threading.Event(), threading.Event()

    def slow(version, path):
        told.append((version, path))
        blocked.set()
        assert go_on.wait(30.0)

    publisher = opened(slow, together=True, shared=tmp_path / "shared")
    publisher.publish(1, params(1))
    assert publisher.is_free
    assert not blocked.wait(0.2)
    publisher.write_together()
    assert blocked.wait(30.0)
    for version in (2, 3):
        publisher.publish(version, params(version))
    publisher.keep_as_best(1.0)
    publisher.write_together()
    publisher.publish(4, params(4))
    go_on.set()
    assert publisher.flush(30.0)
    assert [(version, path.parent.name) for version, path in told] == [(1, "shared"), (3, "shared")]
    assert policy_store.list_versions(tmp_path / "shared") == [1, 3]
    assert policy_store.list_versions(tmp_path / "kept") == [1, 3]
    assert same(policy_store.load_version(policy_store.best_path(tmp_path / "kept"), ABSTRACT), 3)


def test_hosts_that_write_together_begin_the_newest_version_while_another_is_kept(opened, tmp_path, monkeypatch):
    """Or nobody would: the learner runs out of fresh data meanwhile, and only an iteration begins anything."""
    told, blocked, go_on, save_parts = [], threading.Event(), threading.Event(), policy_store.save_parts

    def slow(directory, version, *rest):
        if (directory.name, version) == ("kept", 1):
            blocked.set()
            assert go_on.wait(30.0)
        return save_parts(directory, version, *rest)

    monkeypatch.setattr(policy_store, "save_parts", slow)
    publisher = opened(lambda version, path: told.append((version, publisher.is_free)), together=True)
    publisher.publish(1, params(1))
    publisher.write_together()
    assert blocked.wait(30.0)
    publisher.publish(2, params(2))
    assert publisher.is_free
    publisher.write_together()
    assert not publisher.is_free  # one at a time waits to be sent, or versions would pile up
    publisher.publish(3, params(3))
    go_on.set()
    assert publisher.flush(30.0)
    assert told == [(1, True), (2, True)]
    assert policy_store.list_versions(tmp_path / "kept") == [1]


def test_parts_of_a_version_are_rounded_where_they_lie(opened, tmp_path):
    publisher = opened(dtype="bfloat16", together=True)
    value = 1.0 + 2.0**-12
    publisher.publish(1, {"w": jnp.full((2, 2), value), "statistics": jnp.full(2, value)})
    publisher.write_together()
    assert publisher.flush(30.0)
    sent = policy_store.load_version(policy_store.version_path(tmp_path / "sent", 1), ABSTRACT)
    assert same(sent["w"], 1.0)
    assert same(sent["statistics"], value)
    assert same(policy_store.load_version(policy_store.version_path(tmp_path / "kept", 1), ABSTRACT), value)
