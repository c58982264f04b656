"""The log of a run's process: everything goes to a file, warnings to the screen as well."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from minestudio_jax.utils.live_board import Board


class _WarningsOnBoard(logging.Handler):
    """Shows the first line of every warning on the screen; errors end the run, which tells of them itself."""

    def __init__(self, board: Board) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: record.levelno < logging.ERROR)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line, *_ = record.getMessage().splitlines()
            self._board.stage(f"warning: {line}")
        except Exception:
            self.handleError(record)  # a screen that cannot be drawn on is no fault of whoever warned


def log_to(path: Path, level: str, board: Board, cleanup: ExitStack) -> None:
    """Everything goes to the file, warnings to the screen as well."""
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("minestudio_jax")
    cleanup.callback(logger.setLevel, logger.level)
    logger.setLevel(level.upper())
    cleanup.callback(setattr, logger, "propagate", logger.propagate)
    logger.propagate = False
    for handler in (file, _WarningsOnBoard(board)):
        logger.addHandler(handler)
        cleanup.callback(handler.close)
        cleanup.callback(logger.removeHandler, handler)
