"""The lock of a run directory, also where a file server keeps it for a machine that is gone."""

from __future__ import annotations

import fcntl
import os

import pytest

from minestudio_jax.config import ConfigError
from minestudio_jax.run import run_lock
from minestudio_jax.run.control_files import STATUS, whereabouts, write_status

OTHER_MACHINE = {**whereabouts(), "host": "vanished", "pid": 7, "pid_space": "another-boot pid:[1]"}


@pytest.fixture
def held(tmp_path):
    """A lock that a server keeps."""
    with open(tmp_path / run_lock.NAME, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def silent(run_dir, seconds):
    """Nobody has written the status for so long."""
    written = os.stat(run_dir / STATUS).st_mtime - seconds
    os.utime(run_dir / STATUS, (written, written))


def test_what_a_machine_held_that_is_gone_is_given_up(held, caplog):
    write_status(held, OTHER_MACHINE)
    silent(held, run_lock.ABANDONED_AFTER_S + 60)
    lock = run_lock.hold(held)
    assert "was held by a machine that is gone" in caplog.text
    write_status(held, whereabouts())
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on [^;]*$"):
        run_lock.hold(held)
    lock.close()
    run_lock.hold(held).close()


def test_what_a_machine_holds_that_may_live_is_not(held):
    write_status(held, OTHER_MACHINE)
    silent(held, run_lock.ABANDONED_AFTER_S / 2)
    with pytest.raises(
        ConfigError, match=r"in use by process 7 on vanished: .* free 300 s after its last sign of life"
    ):
        run_lock.hold(held)


def test_on_this_machine_the_lock_says_all(held):
    write_status(held, whereabouts())
    silent(held, 10 * run_lock.ABANDONED_AFTER_S)
    with pytest.raises(ConfigError, match="in use by process"):
        run_lock.hold(held)


def test_who_has_shown_nothing_yet_is_left_alone(held):
    with pytest.raises(ConfigError, match="in use by another process"):
        run_lock.hold(held)
