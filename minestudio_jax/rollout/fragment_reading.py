"""Reading fragments' data out of Ray's object store; those whose producer died are lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import ray
import ray.exceptions

from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata, SampleFragment
from minestudio_jax.rollout.ray_failures import ACTOR_GONE
from minestudio_jax.rollout.replay_chunk import Entry

_LOOK_S = 0.5  # how often a waiting reader looks whether it should stop
_OBJECT_DEADLINE_S = 30.0  # without another fragment's data, of those that are being fetched
_GONE = (*ACTOR_GONE, ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError)

log = logging.getLogger(__name__)


def read_fragments(
    entries: Sequence[Entry],
    ending: Callable[[], bool],
    run_stops: threading.Event,
    is_gone: Callable[[FragmentMetadata], bool] = lambda metadata: False,
) -> tuple[list[SampleFragment], list[FragmentId]]:
    """The data that there are, in the entries' order, and the fragments whose data are gone.

    Args:
      entries: what is wanted.
      ending: whether nobody needs them any more.
      run_stops: set when Ray may be gone at any moment.
      is_gone: whether a fragment's producer is known to be gone.
    """
    waiting = {entry.reference: entry.metadata for entry in entries}
    last_arrival = time.monotonic()
    while waiting and not ending():
        arrived, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_LOOK_S, fetch_local=True)
        for reference in arrived:
            del waiting[reference]
            last_arrival = time.monotonic()
        # Ray takes its time to find out that a whole node is gone.
        if all(is_gone(metadata) for metadata in waiting.values()):
            break
        if time.monotonic() - last_arrival > _OBJECT_DEADLINE_S:
            log.warning("%d fragments could not be fetched in %g s", len(waiting), _OBJECT_DEADLINE_S)
            break
    if not waiting:
        with contextlib.suppress(*_GONE):
            return ray.get([entry.reference for entry in entries], timeout=_OBJECT_DEADLINE_S), []
    there, lost, reason = [], [], "it did not come"
    for entry in entries:  # one by one: some are gone
        if run_stops.is_set():
            break
        if entry.reference in waiting:
            lost.append(entry.metadata.id)
            continue
        try:
            there.append(ray.get(entry.reference, timeout=_OBJECT_DEADLINE_S))
        except _GONE as error:
            lost.append(entry.metadata.id)
            reason = str(error)
    if lost:
        workers = sorted({worker_id for worker_id, *_ in lost})
        log.info("%d fragments of the workers %s are lost; the last: %s", len(lost), workers, reason)
    return there, lost
