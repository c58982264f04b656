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

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything handed over is published; False if that took longer than `timeout_s`."""
        with self._condition:
            done = self._condition.wait_for(
                lambda: self._error is not None or (self._slot is None and not self._busy), timeout_s
            )
            self._raise_error()
            return done

    def close(self, timeout_s: float = 10.0) -> None:
        """Writes what is still waiting, then ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RuntimeError(
                f"publishing to {self._directory} failed: {self._error}; is the disk full or read-only?"
            ) from self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._slot is not None or self._closed)
                if self._slot is None:
                    return
                (version, snapshot), self._slot, self._busy = self._slot, None, True
            try:
                path = policy_store.save_version(self._directory, version, jax.device_get(snapshot))
                policy_store.remove_versions(self._directory, KEPT_VERSIONS)
                self._on_published(version, path)
            except BaseException as error:  # raised by the learner's next call
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            with self._condition:
                self._busy = False
                self._condition.notify_all()
