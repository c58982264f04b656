"""What is done about optimiser steps whose loss or gradient was not finite."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.trainer.update import Diagnosis
from minestudio_jax.utils.metrics import JsonLines

log = logging.getLogger(__name__)


class LearningFailure(RuntimeError):
    """The learner cannot go on by itself; says why and what helps."""


class BadUpdates:
    """Counts skipped steps in a row, and writes down what each was made of.

    Attributes:
      in_a_row: skipped steps since the last one that was taken.
      none_taken: whether all steps of the last iteration were skipped.
    Args:
      path: of the file that skipped steps are written to; made with the first of them.
      most: steps in a row that are too many.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most = path, most
        self.forget()

    def forget(self) -> None:
        """Counts anew: the parameters are others."""
        self.in_a_row, self.none_taken = 0, False

    def observe(self, iteration: int, diagnosis: Diagnosis, metadata: Sequence[FragmentMetadata]) -> bool:
        """Takes in one iteration; whether too many steps in a row were skipped at some point of it.

        Args:
          iteration: number of finished iterations before it.
          diagnosis: NumPy arrays.
          metadata: of the batch's fragments, in its order; empty if there is none.
        """
        too_many = False
        skipped = np.asarray(diagnosis.skipped)
        self.none_taken = bool(skipped.all())
        for epoch, step in np.ndindex(*skipped.shape):
            self.in_a_row = self.in_a_row + 1 if skipped[epoch, step] else 0
            too_many |= self.in_a_row >= self._most
            if skipped[epoch, step]:
                rows = np.asarray(diagnosis.rows)[epoch, step].tolist()
                self._write(iteration, epoch, step, rows, [metadata[row] for row in rows] if metadata else [])
        return too_many

    def _write(self, iteration: int, epoch: int, step: int, rows: list[int], metadata: list[FragmentMetadata]) -> None:
        if self.in_a_row == 1:
            log.warning(
                "iteration %d: the loss or its gradient was not finite, the step is skipped; see %s",
                iteration + 1, self.path,
            )  # fmt: skip
        file = JsonLines(self.path)
        try:
            file.write(
                {
                    "iteration": iteration,
                    "epoch": epoch,
                    "step": step,
                    "fragments": [dataclasses.asdict(m) for m in metadata] or rows,
                }
            )
        finally:
            file.close()
