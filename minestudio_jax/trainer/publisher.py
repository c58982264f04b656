"""ParamPublisher: writes policy versions without making the learner wait.

There are two kinds of places. What is *sent* to the rollout workers lies where they read it fastest, in the numbers of
`publish.dtype`, and goes with the run. What is *kept* lies in the run directory, always in full precision: the first
version of every start, those of checkpoints and the best one. `evaluate` and `convert` read these.

Parameters that are split over hosts are written by all hosts, each what lies on its devices. Then all of them must
write the same versions in the same order, so nothing is begun before `write_together` says so on each of them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from minestudio_jax.trainer import global_arrays
from minestudio_jax.utils import policy_store

KEPT_VERSIONS = 3  # a worker may still be reading the one before the newest

_PARTS_DEADLINE_S = 600  # seconds for the slowest host to have written its part of a version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """How versions are sent to the rollout workers.

    Attributes:
      directory: that they are written to.
      on_published: called with (version, folder) from the publisher's thread once a version is complete; with several
        hosts by the first one's.
      dtype: "float32", or "bfloat16" for everything with two axes or more. Vectors (biases, scales, the statistics of
        the value) are few, and what is subtracted from one another must keep its digits.
      shared: directory that all hosts see, which is written to instead if they write together, and from the first
        failure on; None: there is one host, and a failure ends the run.
    """

    directory: Path
    on_published: Callable[[int, Path], None]
    dtype: str = "float32"
    shared: Path | None = None


@dataclass
class _Version:
    number: int
    params: Any  # a copy: on the devices, or NumPy arrays once it was read
    score: float = -math.inf  # of those that were the best so far


class PublishFailure(RuntimeError):
    """A policy version could not be written or sent; says why."""


class _Work(IntEnum):
    """What is done with a version, the most urgent first: workers wait for what is sent, nobody for what is kept."""

    SEND = 0
    KEEP = 1
    KEEP_AS_BEST = 2


class ParamPublisher:
    """Publishes parameters as numbered versions; if they come faster than they can be written, the newest wins.

    The first version of a process is kept, and those that it is told to keep.

    Args:
      kept: directory of the versions that stay.
      publication: None: nobody waits for versions, they are only kept.
      in_background: everything is written by a thread; otherwise by the caller's, before the call returns.
      together: parameters are split over hosts, which all have a publisher; it writes in the background. Without it
        all hosts may have one, and the first one's writes.
    """

    def __init__(
        self, kept: Path, publication: Publication | None, in_background: bool = True, together: bool = False
    ) -> None:
        self._first, self._together = jax.process_index() == 0, together
        self._writes = self._first or together
        self._kept = kept
        self._kept_numbers: list[int] = []
        self._publication = publication
        self._sent = kept
        if publication is not None:
            self._sent = publication.shared if together and publication.shared else publication.directory
        self._writing_to = kept
        self._copy = jax.jit(_copied if not together else lambda tree: (jax.tree.map(jnp.copy, tree), None))
        self._rounded = jax.jit(lambda tree: jax.tree.map(_rounded, tree))
        self._newest: _Version | None = None
        self._wanted: dict[_Work, _Version] = {}
        self._begun: deque[tuple[_Work, _Version]] = deque()  # of all hosts together
        self._busy = self._sending = self._closed = False
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if (in_background or together) and self._writes:
            self._thread = threading.Thread(target=self._run, name="param-publisher", daemon=True)
            self._thread.start()

    def publish(self, version: int, params: Any) -> None:
        """Hands over one version and returns, before it is even copied; the parameters may be donated afterwards.

        With several hosts all must call it: the copy is made by all devices.

        Raises:
          PublishFailure: writing an earlier version failed; without a thread, or this one.
        """
        snapshot = self._copy(params)[0]
        if not self._writes:
            return
        with self._condition:
            self._raise_error()
            first, self._newest = self._newest is None, _Version(version, snapshot)
        self._want(_Work.SEND)
        if first:
            self._want(_Work.KEEP)

    def keep(self) -> None:
        """Keeps the newest version that was handed over."""
        self._want(_Work.KEEP)

    def keep_as_best(self, score: float) -> None:
        """Keeps the newest version that was handed over as the best so far, unless a better one lies there already."""
        with self._condition:
            if self._newest is not None:
                self._newest.score = score
        self._want(_Work.KEEP_AS_BEST)

    def write_together(self) -> None:
        """Begins to write what was handed over since the last time, where hosts write together.

        All of them must call it at the same point of what they hand over.
        """
        with self._condition:
            if self._together:
                self._begun += sorted(self._wanted.items())
                self._wanted.clear()
                self._condition.notify_all()

    @property
    def is_free(self) -> bool:
        """Whether all versions that hosts have begun together to send are written, by all of them.

        What is kept does not count. The learner may run out of fresh data while it is written; if the newest version
        were not begun by then, to be sent after it, no iteration would come to begin it.
        """
        with self._condition:
            return not self._sending and all(work != _Work.SEND for work, _ in self._begun)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything handed over is published and kept; False if that took longer than `timeout_s`."""
        with self._condition:
            done = self._condition.wait_for(
                lambda: self._error is not None or (not self._has_work() and not self._busy), timeout_s
            )
            self._raise_error()
            return done

    def close(self, timeout_s: float = 10.0) -> None:
        """Writes what is still waiting, then ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _want(self, work: _Work) -> None:
        """Wants something of the newest version, in place of an older one of which the same was wanted."""
        with self._condition:
            if self._newest is not None:
                self._wanted[work] = self._newest
            self._condition.notify_all()
        if self._thread is None:
            try:
                while self._has_work():
                    write, version = self._next_work()
                    write(version)
            except Exception as error:
                self._error = error
                self._raise_error()

    def _has_work(self) -> bool:
        return bool(self._begun if self._together else self._wanted)

    def _raise_error(self) -> None:
        if isinstance(self._error, PublishFailure):
            raise self._error
        if self._error is not None:
            raise PublishFailure(
                f"publishing to {self._writing_to} failed: {self._error}; is the disk full or read-only?"
            ) from self._error

    def _run(self) -> None:
        previous: _Version | None = None
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._has_work() or self._closed)
                if not self._has_work():
                    return
                write, version = self._next_work()
                self._busy = True
            try:
                write(version)
            except BaseException as error:  # raised by the learner's next call
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            with self._condition:
                self._busy = False
                self._condition.notify_all()
            # To give a GB back to the system takes a tenth of a second. Whoever lets go of an array waits for that, and
            # all other threads of Python with it: so it is not the learner that has the last hold of a version that was
            # written, and this thread lets go of one array at a time.
            spent = [] if previous is version or previous is None else jax.tree.leaves(previous.params)
            previous = version
            while spent:
                spent.pop()
                time.sleep(0)  # another thread's turn

    def _next_work(self) -> tuple[Callable[[_Version], None], _Version]:
        if self._together:
            work, version = self._begun.popleft()
        else:
            work = min(self._wanted)
            version = self._wanted.pop(work)
        self._sending = work == _Work.SEND
        if self._sending:
            return self._send, version
        return partial(self._keep, as_best=work == _Work.KEEP_AS_BEST), version

    def _send(self, version: _Version) -> None:
        publication = self._publication
        if publication is not None:
            params = self._in_numbers_to_send(version, publication)
            path = self._written_to_be_sent(version.number, params, publication)
        self._sending = False  # before anybody is told, who may go on with it and ask whether the next can be begun
        if publication is not None and self._first:
            policy_store.remove_versions(self._sent, KEPT_VERSIONS)
            publication.on_published(version.number, path)

    def _in_numbers_to_send(self, version: _Version, publication: Publication) -> Any:
        round_it = publication.dtype != "float32"
        if self._together:
            return global_arrays.each_part(self._rounded, version.params) if round_it else version.params
        if round_it and jax.process_count() == 1:
            return jax.device_get(self._rounded(version.params))
        version.params = global_arrays.fetched(version.params)
        # All hosts must run the same programs in the same order, so none is begun from this thread.
        return jax.tree.map(_rounded, version.params) if round_it else version.params

    def _keep(self, version: _Version, as_best: bool) -> None:
        # Other hosts may be a moment behind or ahead: what lies on the disk would not say the same to all.
        if version.number not in self._kept_numbers:
            params = version.params if self._together else global_arrays.fetched(version.params)
            self._written(self._kept, version.number, params)
            self._kept_numbers = sorted([*self._kept_numbers, version.number])[-KEPT_VERSIONS:]
        if self._first:
            if as_best:
                policy_store.keep_as_best(self._kept, version.number, version.score)
            policy_store.remove_versions(self._kept, KEPT_VERSIONS)

    def _written_to_be_sent(self, number: int, params: Any, publication: Publication) -> Path:
        try:
            return self._written(self._sent, number, params)
        except Exception as error:
            if publication.shared in (None, self._sent):
                raise
            log.warning(
                "%s cannot be written: policy versions go through %s from now on (%s)",
                self._sent,
                publication.shared,
                error,
            )
            self._sent = publication.shared
            return self._written(self._sent, number, params)

    def _written(self, directory: Path, number: int, params: Any) -> Path:
        self._writing_to = directory
        if self._together:
            return policy_store.save_parts(directory, number, params, self._first, partial(_meet, directory, number))
        return policy_store.save_version(directory, number, params)


def _meet(directory: Path, number: int) -> None:
    """Waits for all hosts through their coordinator, which is nothing that their devices do."""
    everybody = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(f"{directory.name}/{number}", timeout=_PARTS_DEADLINE_S, processes=everybody)


def _copied(tree: Any) -> tuple[Any, jax.Array]:
    """A copy, and a number of no meaning.

    XLA runs what has fewer than a thousand floating-point operations in the caller's thread on CPUs, however many bytes
    it copies; the sum makes it more, so that the caller goes on at once.
    """
    some = max(jax.tree.leaves(tree), key=jnp.size).ravel()[:4096].astype(jnp.float32)
    return jax.tree.map(jnp.copy, tree), jnp.sum(some * some)


def _rounded(leaf: Any) -> Any:
    return leaf.astype(jnp.bfloat16) if leaf.ndim >= 2 and leaf.dtype == jnp.float32 else leaf
