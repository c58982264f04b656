"""What the screen shows: lines when it is a file, a board when it is a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from minestudio_jax.utils.live_board import HeartbeatLines, make_board

METRICS = {
    "iteration": 12, "env_steps": 34567, "policy_version": 13, "episode/return_mean_last_20": 4.56,
    "episode/success_rate_last_20": 0.35,
    "speed/env_steps_per_s": 789.0, "speed/trained_steps_per_s": 700.0, "loss/policy": -0.01, "loss/value": 0.5,
    "loss/entropy": 1.23, "ppo/approx_kl": 0.01, "lag/policy_versions_mean": 1.5, "time/update_s": 3.0,
    "time/wait_s": 1.0,
}  # fmt: skip


def test_a_file_gets_one_line_a_stage_and_one_a_heartbeat(capsys):
    board = make_board("auto", 1000.0, "runs/x")
    assert isinstance(board, HeartbeatLines)
    board.stage("starting Ray")
    board.update({}, waiting_for="experience")
    board.update(METRICS)  # within the same heartbeat
    board.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("s] starting Ray")
    assert lines[1].endswith("s] waiting for experience")


def test_success_is_not_spoken_of_where_it_is_not_known(capsys):
    make_board("lines", 0.0, "runs/x").update({**METRICS, "episode/success_rate_last_20": float("nan")})
    assert "solved" not in capsys.readouterr().out


def test_a_heartbeat_tells_progress_return_and_who_waits(capsys):
    make_board("lines", 0.0, "runs/x").update(METRICS, waiting_for="experience")
    (line,) = capsys.readouterr().out.splitlines()
    for word in ("iteration 12", "34,567", "789/s", "4.56 (35% solved)", "lag 1.5", "waiting for experience"):
        assert word in line


def shown_on_a_terminal(lines: str) -> str:
    """What a terminal is sent by a program of these lines, which knows `make_board` and METRICS."""
    code = (
        "from minestudio_jax.utils.live_board import make_board\nfrom tests.utils.test_live_board import METRICS\n"
    ) + lines
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 4096):
            text += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait(30) == 0, text.decode()
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize("kind", ["auto", "live"])
def test_a_terminal_gets_a_board_with_curve_speed_and_shares_of_time(kind):
    shown = shown_on_a_terminal(
        f"board = make_board({kind!r}, 5.0, 'runs/x')\n"
        "board.stage('starting Ray')\n"
        "for i in range(3):\n"
        "    board.update({**METRICS, 'iteration': i, 'episode/return_mean_last_20': float(i)})\n"
        "board.close()\n"
    )
    for word in ("starting Ray", "runs/x", "34,567", "(35% solved)", "update 75%", "wait 25%", "▁▅█", "1.230"):
        assert word in shown, shown


def test_a_board_shows_brackets_and_colons_as_they_are():
    shown = shown_on_a_terminal(
        "board = make_board('live', 5.0, 'runs/[bold]x[/]')\n"
        "board.stage('lost [/tmp/a] and [main/INFO] :warning:')\n"
        "board.update(METRICS, waiting_for='[/nothing]')\n"
        "board.close()\n"
    )
    for word in ("lost [/tmp/a] and [main/INFO] :warning:", "runs/[bold]x[/]", "waiting for [/nothing]"):
        assert word in shown, shown
