"""Brings fragments onto the device ahead of their iteration, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding

from minestudio_jax.rollout.fragment import FragmentMetadata
from minestudio_jax.trainer import global_arrays
from minestudio_jax.trainer.batch import FragmentBatch, Share, stack_fragments
from minestudio_jax.trainer.device_rollout import Ended
from minestudio_jax.utils.staging import StagingMemory

# Called with (timeout_s, ahead); gives this host's share of an iteration's fragments, or None if there were not enough
# within `timeout_s` seconds. `ahead()` iterations will have been finished before these fragments' one begins, those
# under way included: fewer while the source waits and the learner goes on.
FragmentSource = Callable[[float, Callable[[], int]], Share | None]

_POLL_S = 0.5  # how often a waiting thread looks whether it should stop


@dataclass(frozen=True)
class LoadedBatch:
    """One iteration's data.

    Attributes:
      batch: on the devices, of all hosts.
      steps: genuine steps, of all hosts.
      auxiliary_data: of the auxiliary losses, on the device.
      metadata: of each fragment, in the batch's order; empty if the learner collected it itself.
      ended: episodes that ended in it, if the learner collected it itself.
    """

    batch: FragmentBatch
    steps: int
    auxiliary_data: Sequence[Any] = ()
    metadata: Sequence[FragmentMetadata] = ()
    ended: Ended | None = None


class FragmentLoader:
    """Fetches, stacks and places iterations' fragments while others are being trained on.

    Args:
      source: where fragments come from; called from the loader's thread only.
      sharding: of the batch's leading axis.
      ahead: iterations fetched before they are asked for.
      task_weights: see `stack_fragments`.
      auxiliary_data: gives that of the next iteration, on the device; called from the loader's thread, once for each.
    """

    def __init__(
        self,
        source: FragmentSource,
        sharding: NamedSharding,
        ahead: int,
        task_weights: Mapping[str, float],
        auxiliary_data: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self._source = source
        self._load = _Load(sharding, task_weights, auxiliary_data)
        self._wanted = threading.Semaphore(ahead)
        self._asked = False
        self._fetched = 0  # batches, counted by the loader's thread
        self._finished = 0  # batches that have been trained on, counted by the learner's
        self._handed_out = False  # the learner is training on one
        self._ready: queue.Queue[LoadedBatch | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fragment-loader", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> LoadedBatch | None:
        """The next iteration's data, or None if it is not there within `timeout_s`.

        Raises:
          Exception: what the source raised, once.
        """
        if self._handed_out:  # whoever asks for the next one is done with the last
            self._handed_out = False
            self._finished += 1
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
        self._handed_out = True
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
                share = None
                while share is None and not self._stop.is_set():
                    share = self._source(_POLL_S, lambda: self._fetched - self._finished)
                if share is None:
                    return
                self._fetched += 1
                self._ready.put(self._load(share))
            except BaseException as error:  # handed to the consumer, who raises it
                self._ready.put(error)
                return


class DirectLoader:
    """The same on the caller's thread: nothing is fetched before it is asked for.

    Args:
      source, sharding, task_weights, auxiliary_data: as FragmentLoader.
    """

    def __init__(
        self,
        source: FragmentSource,
        sharding: NamedSharding,
        task_weights: Mapping[str, float],
        auxiliary_data: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self._source = source
        self._load = _Load(sharding, task_weights, auxiliary_data)

    def next(self, timeout_s: float) -> LoadedBatch | None:
        """As FragmentLoader.next."""
        share = self._source(timeout_s, lambda: 0)
        return None if share is None else self._load(share)

    def close(self) -> None:
        """There is nothing to stop."""


class _Load:
    """Makes a LoadedBatch of this host's share of an iteration's fragments."""

    def __init__(
        self,
        sharding: NamedSharding,
        task_weights: Mapping[str, float],
        auxiliary_data: Callable[[], Sequence[Any]],
    ) -> None:
        self._sharding, self._task_weights, self._auxiliary_data = sharding, task_weights, auxiliary_data
        self._memory = StagingMemory()

    def __call__(self, share: Share) -> LoadedBatch:
        stacked = stack_fragments(share.fragments, self._task_weights, self._memory, share.continues)
        return LoadedBatch(
            batch=global_arrays.from_rows(stacked, share.rows, len(share.metadata), self._sharding),
            steps=sum(m.valid_steps for m in share.metadata),
            auxiliary_data=self._auxiliary_data(),
            metadata=share.metadata,
        )
