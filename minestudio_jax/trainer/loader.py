"""Brings fragments onto the device ahead of their iteration, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import NamedSharding

from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.trainer.batch import FragmentBatch, stack_fragments
from minestudio_jax.trainer.device_rollout import Ended

# Gives an iteration's fragments, or None if there were not enough within the seconds it was given.
FragmentSource = Callable[[float], Sequence[SampleFragment] | None]

_POLL_S = 0.5  # how often a waiting thread looks whether it should stop


@dataclass(frozen=True)
class LoadedBatch:
    """One iteration's data.

    Attributes:
      batch: on the device.
      version_first: oldest policy version of each fragment.
      steps: genuine steps.
      ended: episodes that ended in it, if the learner collected it itself.
    """

    batch: FragmentBatch
    version_first: list[int]
    steps: int
    ended: Ended | None = None


class FragmentLoader:
    """Fetches, stacks and places iterations' fragments while others are being trained on.

    Args:
      source: where fragments come from; called from the loader's thread only.
      sharding: of the batch's leading axis.
      current_version: policy version of the parameters in training.
      ahead: iterations fetched before they are asked for.
    """

    def __init__(
        self, source: FragmentSource, sharding: NamedSharding, current_version: Callable[[], int], ahead: int
    ) -> None:
        self._source = source
        self._sharding = sharding
        self._current_version = current_version
        self._wanted = threading.Semaphore(ahead)
        self._asked = False
        self._ready: queue.Queue[LoadedBatch | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fragment-loader", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> LoadedBatch | None:
        """The next iteration's data, or None if it is not there within `timeout_s`.

        Raises:
          Exception: what the source raised, once.
        """
        if not self._asked:
            self._asked = True
            self._wanted.release()
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        self._asked = False
        return item

    def close(self, timeout_s: float = 10.0) -> None:
        """Stops the thread; waits at most `timeout_s` for a fetch under way."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._wanted.acquire(timeout=_POLL_S):
                continue
            try:
                fragments = None
                while fragments is None and not self._stop.is_set():
                    fragments = self._source(_POLL_S)
                if fragments is None:
                    return
                self._ready.put(self._load(fragments))
            except BaseException as error:  # handed to the consumer, who raises it
                self._ready.put(error)
                return

    def _load(self, fragments: Sequence[SampleFragment]) -> LoadedBatch:
        batch = stack_fragments(fragments, self._current_version())
        return LoadedBatch(
            batch=jax.device_put(batch, self._sharding),
            version_first=[f.metadata.version_first for f in fragments],
            steps=sum(f.metadata.valid_steps for f in fragments),
        )
