from __future__ import annotations

import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from minestudio_jax.run.playing import as_text, parse_script
from tests.rollout.processes import wait_until
from tests.run.in_process import refusal
from tests.run.programs import Program


def test_a_script_is_keys_degrees_crafts_and_ticks():
    assert parse_script("forward+attack*20; yaw=-9*10 ;craft=stick; wait*5") == [
        ({"forward": 1, "attack": 1}, 20), ({"yaw": -9.0}, 10), ({"craft": 2}, 1), ({}, 5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("fly*3", "no key 'fly'"), ("jump*x", "number of ticks"), ("yaw=left", "number of degrees"),
     ("craft=sword", "cannot be crafted")],
)  # fmt: skip
def test_a_script_that_cannot_be_understood_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_script(text)


def test_a_picture_becomes_two_pixels_a_character():
    image = np.zeros((4, 3, 3), np.uint8)
    image[1, 2] = (1, 2, 3)
    text = as_text(image)
    assert text.count("▀") == 6
    assert text.count("\r\n") == 2
    assert "\x1b[48;2;1;2;3m▀" in text


def test_the_program_plays_a_script_and_writes_a_video(tmp_path):
    import av

    program = Program(
        "play", "--task=collect_dirt", "--preset=toy", "--script=pitch=8*6; attack*14", f"--video={tmp_path / 'v.mp4'}"
    )
    assert program.wait() == 0, program.stdout + program.stderr
    assert "20 ticks, reward" in program.stdout
    assert "dirt" in program.stdout
    with av.open(str(tmp_path / "v.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 20
    assert frames[0].shape == (360, 640, 3)
    assert np.abs(frames[0].astype(int) - frames[8].astype(int)).mean() > 5


def test_what_cannot_be_played_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["--task=chop_trees", "--script=wait"], "did you mean 'chop_tree'"),
        (["--script=fly"], "no key 'fly'"),
        (["--video=v.gif", "--script=wait"], "must end in .mp4"),
        ([], "needs a terminal"),
    ):
        assert words in refusal(capsys, "play", *arguments)


def test_the_keyboard_moves_the_player_on_a_terminal():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minestudio_jax.play", "--task=navigate"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def seen(*words):
        try:
            while chunk := os.read(ours, 65536):
                shown.extend(chunk)
        except OSError:
            pass
        return all(word in shown for word in words)

    assert wait_until(lambda: seen("▀".encode(), b"reward 0  tick"), 60.0), shown[-500:]
    os.write(ours, b"f")
    assert wait_until(lambda: seen(b"attacking"), 20.0)
    os.write(ours, b"q")
    assert wait_until(lambda: seen(b" ticks, reward") or process.poll() is not None, 20.0)
    assert process.wait(20) == 0
    os.close(ours)
