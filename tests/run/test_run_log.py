"""What of a process's log is also on its screen."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest

from minestudio_jax.run.run_log import log_to


class _Board:
    """Keeps what it is told, or cannot be drawn on."""

    def __init__(self, error: Exception | None = None) -> None:
        self.lines: list[str] = []
        self._error = error

    def stage(self, text):
        if self._error is not None:
            raise self._error
        self.lines.append(text)

    def update(self, metrics, waiting_for=""):
        raise AssertionError("a log changes no numbers")

    def close(self):
        pass


@pytest.fixture
def cleanup():
    with ExitStack() as stack:
        yield stack


LOGGER = logging.getLogger("minestudio_jax.somewhere")


def test_the_first_line_of_a_warning_is_shown_and_the_file_has_everything(tmp_path, cleanup):
    board = _Board()
    log_to(tmp_path / "run.log", "info", board, cleanup)
    LOGGER.info("all is well")
    LOGGER.warning("lost [/tmp/a]\nand more")
    LOGGER.error("the end")
    assert board.lines == ["warning: lost [/tmp/a]"]
    text = (tmp_path / "run.log").read_text()
    for words in ("all is well", "lost [/tmp/a]\nand more", "the end"):
        assert words in text


@pytest.mark.parametrize("error", [ValueError("no such style"), OSError("no such terminal")])
def test_whoever_warns_is_not_told_that_the_screen_cannot_be_drawn_on(tmp_path, cleanup, error, capsys):
    log_to(tmp_path / "run.log", "info", _Board(error), cleanup)
    LOGGER.warning("lost %s", "a")
    LOGGER.warning("")
    assert "lost a" in (tmp_path / "run.log").read_text()
    assert str(error) in capsys.readouterr().err
