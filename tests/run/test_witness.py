"""A real process that ends in every way, and what its witness says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.rollout.processes import is_alive, wait_until

_PROGRAM = """
import os, sys, time
from pathlib import Path
from minestudio_jax.run import last_words
from tests.run.test_witness import witness_of

log = Path(sys.argv[1])
last_words.if_silent("the first sentence", log)
last_words.if_silent("it has 'quotes'\\nand lines", log)
{how}
"""
_SAID = "ended without a word: it has 'quotes'\nand lines\n"


def run(how, log):
    """What a process that ends so leaves: its number, its exit code, stdout and stderr."""
    command = [sys.executable, "-c", _PROGRAM.format(how=how), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=60)
    return process.pid, process.returncode, out, err


def witness_of(pid):
    (witness,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if [os.path.basename(word) for word in process.info["cmdline"] or ()][3:5] == ["witness.py", str(pid)]
    )
    return witness


def ignored(pid):
    """Signals that a process ignores."""
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return {number for number in range(1, 32) if int(mask.split()[1], 16) >> (number - 1) & 1}


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("os._exit(1)", 1),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import ctypes; ctypes.CDLL(None)._exit(3)", 3),
        ("import subprocess; subprocess.Popen(['sleep', '0.5']); os._exit(1)", 1),
    ],
)
def test_what_ends_without_a_word_gets_its_last_one(tmp_path, how, code):
    log = tmp_path / "run.log"
    log.write_text("before\n")
    pid, ended, out, err = run(how, log)
    assert ended == code
    assert out == ""
    assert err == f"train: process {pid} {_SAID}"
    before, after = log.read_text().split("\n", 1)
    assert before == "before"
    assert after.endswith(f"ERROR witness: process {pid} {_SAID}")


@pytest.mark.parametrize("how", ["last_words.said()", "last_words.said(); last_words.said(); os._exit(1)"])
def test_what_has_said_everything_is_left_alone(tmp_path, how):
    log = tmp_path / "run.log"
    *_, out, err = run(how, log)
    assert out + err == ""
    assert not log.exists()


def test_a_log_that_cannot_be_written_costs_no_word(tmp_path):
    pid, code, _, err = run("os._exit(1)", tmp_path / "no" / "such" / "folder")
    assert code == 1
    assert err == f"train: process {pid} {_SAID}"


def test_a_witness_that_is_killed_disturbs_nobody(tmp_path):
    how = (
        "w = witness_of(os.getpid()); w.kill(); w.wait(); last_words.if_silent('more', log); "
        "last_words.said(); print('done')"
    )
    _, code, out, err = run(how, tmp_path / "run.log")
    assert (code, out, err) == (0, "done\n", "")


def test_a_signal_to_every_process_does_not_end_the_witness_first(tmp_path):
    log = tmp_path / "run.log"
    command = [sys.executable, "-c", _PROGRAM.format(how="print('ready', flush=True); time.sleep(600)"), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        witness = witness_of(process.pid)
        assert not psutil.Process(process.pid).children()
        stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        assert wait_until(lambda: ignored(witness.pid) >= set(stops))  # until then it starts
        for number in stops:
            os.kill(witness.pid, number)
        process.kill()
        _, err = process.communicate(timeout=60)
    assert err == f"train: process {process.pid} {_SAID}"
    assert wait_until(lambda: not is_alive(witness.pid), 10.0)
