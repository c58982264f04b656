"""ParamPublisher: writes policy versions without making the learner wait.

There are two kinds of places. What is *sent* to the rollout workers lies where they read it fastest, in the numbers of
`publish.dtype`, and goes with the run. What is *kept* lies in the run directory, always in full precision: the first
version, those of checkpoints and the best one. `evaluate` and `convert` read these.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from minestudio_jax.trainer import placement
from minestudio_jax.utils import policy_store

KEPT_VERSIONS = 3  # a worker may still be reading the one before the newest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """How versions are sent to the rollout workers.

    Attributes:
      directory: that they are written to.
      fallback: directory that they are written to from the first failure on; None: a failure ends the run.
      dtype: "float32", or "bfloat16" for everything with two axes or more. Vectors (biases, scales, the statistics of
        the value) are few, and what is subtracted from one another must keep its digits.
      on_published: called with (version, folder) from the publisher's thread once a version is complete.
    """

    directory: Path
    on_published: Callable[[int, Path], None]
    dtype: str = "float32"
    fallback: Path | None = None


@dataclass
class _Version:
    number: int
    params: Any  # a copy: on the device, or on the host if other hosts had parts of it, or once it was read


class ParamPublisher:
    """Publishes parameters as numbered versions; if they come faster than they can be written, the newest wins.

    Args:
      kept: directory of the versions that stay.
      publication: None: nobody waits for versions, they are only kept.
      in_background: everything is written by a thread; otherwise by the caller's, before the call returns.
      writes: False on all hosts but the first: they only help it to the parameters that lie on their devices.
    """

    def __init__(
        self, kept: Path, publication: Publication | None, in_background: bool = True, writes: bool = True
    ) -> None:
        self._kept = kept
        self._writes = writes
        self._publication = publication
        self._sent = publication.directory if publication else kept
        self._writing_to = kept
        self._copy = jax.jit(_copied)
        self._rounded = jax.jit(lambda tree: jax.tree.map(_rounded, tree))
        self._newest: _Version | None = None
        self._to_send: _Version | None = None
        self._to_keep: _Version | None = None
        self._best: _Version | None = None
        self._busy = self._closed = False
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if in_background and writes:
            self._thread = threading.Thread(target=self._run, name="param-publisher", daemon=True)
            self._thread.start()

    def publish(self, version: int, params: Any) -> None:
        """Hands over one version and returns, before it is even copied; the parameters may be donated afterwards.

        Parameters of which parts lie on other hosts alone are first collected in the first host's memory.

        Raises:
          RuntimeError: writing an earlier version failed.
        """
        snapshot = self._copy(params)[0] if placement.first_host_has(params) else placement.gathered(params)
        if not self._writes:
            return
        with self._condition:
            self._raise_error()
            self._newest = self._to_send = _Version(version, snapshot)
        self._work_is_there()

    def keep(self) -> None:
        """Keeps the newest version that was handed over."""
        if not self._writes:
            return
        with self._condition:
            self._to_keep = self._newest
        self._work_is_there()

    def keep_as_best(self) -> None:
        """Keeps the newest version that was handed over as the best so far."""
        if not self._writes:
            return
        with self._condition:
            self._best = self._newest
        self._work_is_there()

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

    def _work_is_there(self) -> None:
        """Wakes the thread, or does the work if there is none."""
        if self._thread is None:
            while self._has_work():
                self._next_work()()
            return
        with self._condition:
            self._condition.notify_all()

    def _has_work(self) -> bool:
        return any(version is not None for version in (self._to_send, self._to_keep, self._best))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RuntimeError(
                f"publishing to {self._writing_to} failed: {self._error}; is the disk full or read-only?"
            ) from self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._has_work() or self._closed)
                if not self._has_work():
                    return
                work = self._next_work()
                self._busy = True
            try:
                work()
            except BaseException as error:  # raised by the learner's next call
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _next_work(self) -> Callable[[], None]:
        """What is most urgent: workers wait for what is sent, nobody for what is kept."""
        if self._to_send is not None:
            version, self._to_send = self._to_send, None
            return partial(self._send, version)
        if self._to_keep is not None:
            version, self._to_keep = self._to_keep, None
            return partial(self._keep, version)
        assert self._best is not None
        version, self._best = self._best, None
        return partial(self._keep, version, as_best=True)

    def _send(self, version: _Version) -> None:
        publication = self._publication
        if publication is not None:
            if publication.dtype == "float32":
                params = version.params = placement.fetched(version.params)
            else:
                params = self._fetched_rounded(version)
            path = self._written_to_be_sent(version.number, params, publication)
            policy_store.remove_versions(self._sent, KEPT_VERSIONS)
            publication.on_published(version.number, path)
        if not policy_store.list_versions(self._kept):
            self._keep(version)

    def _fetched_rounded(self, version: _Version) -> Any:
        if jax.process_count() == 1:
            return jax.device_get(self._rounded(version.params))
        # All hosts must run the same programs in the same order, so none is begun from this thread.
        version.params = placement.fetched(version.params)
        return jax.tree.map(_rounded, version.params)

    def _keep(self, version: _Version, as_best: bool = False) -> None:
        if not policy_store.version_path(self._kept, version.number).exists():
            self._written(self._kept, version.number, placement.fetched(version.params))
        if as_best:
            policy_store.keep_as_best(self._kept, version.number)
        policy_store.remove_versions(self._kept, KEPT_VERSIONS)

    def _written_to_be_sent(self, number: int, params: Any, publication: Publication) -> Path:
        try:
            return self._written(self._sent, number, params)
        except Exception as error:
            if publication.fallback is None or self._sent == publication.fallback:
                raise
            log.warning(
                "%s cannot be written: policy versions go through %s from now on (%s)",
                self._sent,
                publication.fallback,
                error,
            )
            self._sent = publication.fallback
            return self._written(self._sent, number, params)

    def _written(self, directory: Path, number: int, params: Any) -> Path:
        self._writing_to = directory
        return policy_store.save_version(directory, number, params)


def _copied(tree: Any) -> tuple[Any, jax.Array]:
    """A copy, and a number of no meaning.

    XLA runs what has fewer than a thousand floating-point operations in the caller's thread on CPUs, however many bytes
    it copies; the sum makes it more, so that the caller goes on at once.
    """
    some = max(jax.tree.leaves(tree), key=jnp.size).ravel()[:4096].astype(jnp.float32)
    return jax.tree.map(jnp.copy, tree), jnp.sum(some * some)


def _rounded(leaf: Any) -> Any:
    return leaf.astype(jnp.bfloat16) if leaf.ndim >= 2 and leaf.dtype == jnp.float32 else leaf
