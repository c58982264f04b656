"""Programs of the package in this process, for command lines that are refused: sooner by an interpreter and its imports."""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys

import absl.logging
import pytest
from absl import app, flags
from absl.testing import flagsaver

import minestudio_jax.run.training_run  # noqa: F401 (flags of what this imports are not the programs', and stay)
from tests.rollout.processes import children


def run_in_process(name: str, *arguments: str) -> int:
    """Exit code of `python -m minestudio_jax.<name> <arguments>`, which may end before it starts anything only.

    What it says is capsys's. Its flags are its own, so that another program may have some of the same names, and nothing
    that a program does to its process is left in this one.
    """
    app.define_help_flags()  # which absl does once only: they must not be taken away with the program's
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")  # as if by a user: the program does not choose another one
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(logging, "basicConfig", lambda **_: None)
        patch.setattr(absl.logging, "use_absl_handler", lambda: None)
        patch.delitem(sys.modules, f"minestudio_jax.{name}", raising=False)
        try:
            runpy.run_module(f"minestudio_jax.{name}", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            flags.FLAGS.unparse_flags()
    raise AssertionError(f"{name} has not ended")


def refusal(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    """The one line with which a program refuses its command line. Nothing else is said, and nothing was started."""
    before = children()
    code = run_in_process(name, *arguments)
    out, error = capsys.readouterr()
    assert children() <= before
    assert (code, out) == (2, ""), (out, error)
    assert len(error.splitlines()) == 1, error
    assert error.startswith(f"{name}: error: ")
    return error
