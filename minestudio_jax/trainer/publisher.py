"""ParamPublisher: writes policy versions for the rollout workers without making the learner wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from minestudio_jax.utils import policy_store

KEPT_VERSIONS = 3  # a worker may still be reading the one before the newest


class ParamPublisher:
    """Publishes parameters as numbered versions; if they come faster than they can be written, the newest wins.

    Args:
      directory: of the versions.
      on_published: called with (version, folder) from the publisher's thread once a version is complete.
    """

    def __init__(self, directory: Path, on_published: Callable[[int, Path], None]) -> None:
        self._directory = directory
        self._on_published = on_published
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._slot: tuple[int, Any] | None = None
        self._condition = threading.Condition()
        self._best_wanted = False
        self._busy = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="param-publisher", daemon=True)
        self._thread.start()

    def publish(self, version: int, params: Any) -> None:
        """Hands over one version and returns; the parameters may be donated afterwards.

        Raises:
          RuntimeError: writing an earlier version failed.
        """
        snapshot = self._copy(params)
        with self._condition:
            self._raise_error()
            self._slot = (version, snapshot)
            self._condition.notify_all()

    def keep_as_best(self) -> None:
        """Keeps the newest version that was handed over as the best so far."""
        with self._condition:
            self._best_wanted = True
            self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything handed over is published; False if that took longer than `timeout_s`."""
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
        self._thread.join(timeout_s)

    def _has_work(self) -> bool:
        return self._slot is not None or self._best_wanted

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RuntimeError(
                f"publishing to {self._directory} failed: {self._error}; is the disk full or read-only?"
            ) from self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._has_work() or self._closed)
                if not self._has_work():
                    return
                (slot, self._slot), (best, self._best_wanted) = (self._slot, None), (self._best_wanted, False)
                self._busy = True
            try:
                if slot is not None:
                    self._write(*slot)
                written = policy_store.list_versions(self._directory)
                if best and written:
                    policy_store.keep_as_best(self._directory, written[-1])
            except BaseException as error:  # raised by the learner's next call
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _write(self, version: int, snapshot: Any) -> None:
        path = policy_store.save_version(self._directory, version, jax.device_get(snapshot))
        policy_store.remove_versions(self._directory, KEPT_VERSIONS)
        self._on_published(version, path)
