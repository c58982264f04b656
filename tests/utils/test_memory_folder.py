"""Folders in memory go with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from minestudio_jax.utils.memory_folder import MemoryFolder, free_bytes

OWNER = """
import pathlib, sys, time
from minestudio_jax.utils.memory_folder import MemoryFolder
folder = MemoryFolder(pathlib.Path(sys.argv[1]))
(folder.path / "00000001").mkdir()
print(folder.path, flush=True)
time.sleep(600)
"""


def test_a_folder_is_removed_with_its_content(tmp_path):
    folder = MemoryFolder(tmp_path)
    (folder.path / "a").mkdir()
    (folder.path / "a" / "b").write_text("c")
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_stays(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner, owner.stdout:
        theirs = owner.stdout.readline().strip()
        beside = MemoryFolder(tmp_path)
        assert sorted(map(str, tmp_path.iterdir())) == sorted([theirs, str(beside.path)])
        os.kill(owner.pid, signal.SIGKILL)
    after = MemoryFolder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([beside.path, after.path])
    beside.close()
    after.close()
    assert list(tmp_path.iterdir()) == []


def test_no_such_file_system_has_no_room(tmp_path):
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "none") == 0
