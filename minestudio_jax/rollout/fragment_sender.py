"""FragmentSender: a worker's fragments on their way to the replay buffer, in order, whatever becomes of the buffer."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment
from minestudio_jax.rollout.ray_failures import ACTOR_GONE, MAKE_ROOM, STORE_FULL

_WAIT_S = 0.5  # how often a blocked sender looks whether it should give up
_FIRST_PAUSE_S = 0.05  # before another attempt to store a fragment; doubles
_LONGEST_PAUSE_S = 2.0
_SAY_FULL_AFTER_S = 10.0

log = logging.getLogger(__name__)


@dataclass
class _Delivery:
    """One fragment under way: where its data are, and the call that tells a buffer as number such of a stream.

    One call tells of several fragments, and the buffer answers how many of them it has taken. No call: it has not been
    told of yet.
    """

    reference: Any
    metadata: FragmentMetadata
    buffer: Any = None
    number: int = 0
    call: Any = None


@dataclass(frozen=True)
class SenderCounters:
    """What went wrong on the way, since the start of the worker.

    Attributes:
      abandoned: fragments that could not be delivered before the worker had to end.
      store_full: attempts to store a fragment for which Ray's object store had no room.
    """

    abandoned: int = 0
    store_full: int = 0

    def __add__(self, other: SenderCounters) -> SenderCounters:
        return SenderCounters(self.abandoned + other.abandoned, self.store_full + other.store_full)


class Outbox:
    """A thread that delivers fragments, so that acting does not wait while they are stored.

    Args:
      sender: used by the thread only.
      on_error: called from the thread with what makes delivering impossible; nothing is delivered any more then.
    """

    def __init__(self, sender: FragmentSender, on_error: Callable[[Exception], None]) -> None:
        self._sender, self._on_error = sender, on_error
        self._queue: queue.Queue[SampleFragment | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, name="fragment-sender", daemon=True)
        self._thread.start()

    def offer(self, fragment: SampleFragment, timeout_s: float) -> bool:
        """Hands a fragment over; False if there was no room for it in time."""
        try:
            self._queue.put(fragment, timeout=timeout_s)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Delivers what was handed over, for as long as the sender may wait, and ends the thread."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_WAIT_S)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                try:
                    fragment = self._queue.get(timeout=_WAIT_S)
                except queue.Empty:
                    self._sender.attend()
                    continue
                if fragment is None:
                    break
                self._sender.store(fragment)
                if self._queue.empty():  # otherwise the buffer is told of the next one, too, in one call
                    self._sender.tell()
            self._sender.flush()
        except Exception as error:  # told by the worker's next report
            self._on_error(error)


class FragmentSender:
    """Stores fragments and tells the buffer of them, all from one thread but for what says otherwise.

    A buffer that died is waited for: everything that it had not confirmed is told to the next one again.

    Args:
      buffer: handle of the ReplayBufferActor.
      queue_size: fragments under way before `store` waits.
      must_end: says that the worker has no more time to wait.
    """

    def __init__(self, buffer: Any, queue_size: int, must_end: Callable[[], bool]) -> None:
        self._newest = (0, buffer)
        self._buffer = buffer  # the one that is told of new fragments
        self._stream = uuid.uuid4().hex
        self._told = 0  # fragments of the stream
        self._queue_size = queue_size
        self._must_end = must_end
        self._under_way: list[_Delivery] = []
        self._abandoned = self._store_full = 0
        self._counting = threading.Lock()
        self._new_buffer = threading.Event()

    @property
    def counters(self) -> SenderCounters:
        return SenderCounters(self._abandoned, self._store_full)

    def set_buffer(self, buffer: Any, life: int) -> None:
        """Another buffer, of a later `life`, has taken the place of the last one; from any thread."""
        if life > self._newest[0]:
            self._newest = (life, buffer)
            self._new_buffer.set()

    def store(self, fragment: SampleFragment) -> None:
        """Takes a fragment, of which the buffer will be told; waits while too many are under way, or for room."""
        while len(self._under_way) >= self._queue_size and not self._must_end():
            self._settle(_WAIT_S)
        fragment = fragment.sized()
        reference = self._stored(fragment)
        if reference is None:
            self.abandon()
            return
        self._under_way.append(_Delivery(reference, fragment.metadata))

    def tell(self) -> None:
        """Tells the buffer of what has been stored since it was told last; does not wait."""
        self._tell([delivery for delivery in self._under_way if delivery.call is None])

    def attend(self) -> None:
        """Notes what has been delivered, and tells a new buffer of what has not; does not wait."""
        self._settle(0.0)

    def abandon(self) -> None:
        """Counts a fragment that its worker could not even hand over; from any thread."""
        with self._counting:
            self._abandoned += 1

    def flush(self) -> None:
        """Waits until everything is delivered; what is not when the worker must end is abandoned."""
        self._settle(0.0)
        while self._under_way and not self._must_end():
            self._settle(_WAIT_S)
        with self._counting:
            self._abandoned += len(self._under_way)
        self._under_way = []

    def _settle(self, timeout_s: float) -> None:
        """Forgets what the buffer has taken; tells it, or a new one, of the rest. Waits for one answer at most."""
        if not self._under_way:
            return
        self._new_buffer.clear()
        if self._newest[1] is not self._buffer:
            self._buffer, self._stream, self._told = self._newest[1], uuid.uuid4().hex, 0
            self._tell(self._under_way)
        self.tell()
        calls = list(dict.fromkeys(delivery.call for delivery in self._under_way))
        if timeout_s:
            ray.wait(calls, timeout=timeout_s)
        done = set(ray.wait(calls, num_returns=len(calls), timeout=0)[0])
        kept, refused = [], []
        for call, told in itertools.groupby(self._under_way, key=lambda delivery: delivery.call):
            deliveries = list(told)
            if call in done:
                try:
                    taken = ray.get(call)
                except ACTOR_GONE:
                    refused.append(deliveries)
                else:
                    deliveries = deliveries[taken:]
                    self._tell(deliveries)  # there was no room for them
            kept += deliveries
        self._under_way = kept
        if refused:
            self._new_buffer.wait(timeout_s)
            for deliveries in refused:
                self._tell(deliveries)

    def _tell(self, deliveries: Sequence[_Delivery]) -> None:
        """Tells the present buffer of one behind the other; what it has been told already it knows by the numbers."""
        if not deliveries:
            return
        for delivery in deliveries:
            if delivery.buffer is not self._buffer:
                delivery.buffer, delivery.number = self._buffer, self._told
                self._told += 1
        references, metadata = [d.reference for d in deliveries], [d.metadata for d in deliveries]
        call = self._buffer.add.remote(references, metadata, self._stream, deliveries[0].number)
        for delivery in deliveries:
            delivery.call = call

    def _stored(self, fragment: SampleFragment) -> Any:
        """Reference of the fragment in Ray's object store; None if there was no room until the worker had to end."""
        began, pause_s, said = time.monotonic(), _FIRST_PAUSE_S, False
        while True:
            try:
                return ray.put(fragment)
            except STORE_FULL as error:
                self._store_full += 1
                if self._must_end():
                    return None
                if time.monotonic() - began > _SAY_FULL_AFTER_S and not said:
                    said = True
                    log.warning(
                        "waits for %g s already for room in Ray's object store for a fragment of %d bytes (%s): %s",
                        _SAY_FULL_AFTER_S,
                        fragment.metadata.num_bytes,
                        error,
                        MAKE_ROOM,
                    )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._settle(0.0)  # what the buffer has taken meanwhile is no longer ours
