"""Videos of episodes."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from minestudio_jax.envs.minecraft import Callback, Outcome, Simulator
from minestudio_jax.envs.tasks import TICKS_PER_S
from minestudio_jax.utils.video import VideoWriter

_QUEUE_FRAMES = 200
_LAST_WAIT_S = 5.0  # less than an instance has to close in good order
_LOOK_AROUND_S = 1.0

log = logging.getLogger(__name__)


class Record(Callback):
    """Records every so many episodes as <folder>/env-<index>-episode-<number>.mp4.

    Beside it, in a .json, is what came of it and which versions of the policy acted.

    A thread encodes while the game goes on. Whatever goes wrong there, a codec that fails or a disk that is full or too
    slow, costs that video and is logged; the episode never notices.

    Args:
      folder: made if it is not there.
      every: the first episode is recorded and every such one after it.
      index: of the environment, for the name.
    Raises:
      ValueError: PyAV is not installed for this interpreter, or `every` is no number of episodes.
    """

    def __init__(self, folder: str, every: int = 1, index: int = 0) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"record: every={every!r} must be a number of episodes, at least 1")
        try:
            import av  # noqa: F401 (missing, it is to be known now and not at the first episode's end)
        except ImportError:
            raise ValueError("record needs PyAV under the interpreter of env.python: pip install av") from None
        self._folder, self._every, self._index = Path(folder).expanduser(), every, index
        self._folder.mkdir(parents=True, exist_ok=True)
        self._episode, self._steps, self._total = -1, 0, 0.0
        self._versions: List[int] = []  # of the policies that acted in the episode, in their order
        self._video: Optional[_Video] = None
        self._finished: List[_Video] = []  # but for the encoding

    def after_reset(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        self._finish({})
        self._episode, self._steps, self._total, self._versions = self._episode + 1, 0, 0.0, []
        if self._episode % self._every == 0:
            path = self._folder / f"env-{self._index}-episode-{self._episode}.mp4"
            self._video = _Video(path, outcome.frame.image)
        return outcome

    def after_step(self, simulator: Simulator, outcome: Outcome) -> Outcome:
        if self._video is None:
            return outcome
        self._steps, self._total = self._steps + 1, self._total + outcome.reward
        if self._versions[-1:] != [outcome.policy_version]:
            self._versions.append(outcome.policy_version)
        self._video.add(outcome.frame.image)
        if outcome.terminated or outcome.truncated:
            ends = {"terminated": outcome.terminated, "truncated": outcome.truncated}
            self._finish({**ends, "info": outcome.info})
        return outcome

    def close(self) -> None:
        self._finish({})
        deadline = time.monotonic() + _LAST_WAIT_S
        for video in self._finished:
            video.wait(deadline - time.monotonic())

    def _finish(self, told: Dict[str, Any]) -> None:
        if self._video is not None:
            about = {
                "env": self._index, "episode": self._episode, "steps": self._steps, "return": self._total,
                "policy_versions": self._versions,
            }  # fmt: skip
            self._video.finish({**about, **told})
            self._finished = [video for video in (*self._finished, self._video) if video.is_under_way]
            self._video = None


class _Video:
    """One video under way, encoded by a thread.

    Args:
      path: of the video.
      frame: the first, uint8 [H, W, 3]; an odd row or column at the edge is left out of the video.
    """

    def __init__(self, path: Path, frame: np.ndarray) -> None:
        self._path = path
        self._height, self._width = (side // 2 * 2 for side in frame.shape[:2])
        self._frames: queue.Queue[Any] = queue.Queue(_QUEUE_FRAMES)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._encode, name=f"video {path.name}", daemon=True)
        self._thread.start()
        self.add(frame)

    def add(self, frame: np.ndarray) -> None:
        """Takes a frame in; never waits."""
        self._put(np.array(frame[: self._height, : self._width]))

    @property
    def is_under_way(self) -> bool:
        """There is something left to encode."""
        return self._thread.is_alive()

    def finish(self, about: Dict[str, Any]) -> None:
        """The video is complete; `about` is to be written beside it. Never waits."""
        self._put(about)

    def wait(self, limit_s: float) -> None:
        """Until it is encoded, at most so long."""
        self._thread.join(max(limit_s, 0.0))

    def _put(self, item: Any) -> None:
        if self._given_up.is_set():
            return
        try:
            self._frames.put_nowait(item)
        except queue.Full:
            self._given_up.set()
            log.warning("%s is given up: %d frames wait to be encoded", self._path, _QUEUE_FRAMES)

    def _encode(self) -> None:
        try:
            about = self._encoded()
            if about is not None:
                self._path.with_suffix(".json").write_text(json.dumps(about, default=float) + "\n")
                return
        except Exception:  # told with its traceback: whatever a codec raises, the game goes on
            self._given_up.set()
            log.exception("%s is given up", self._path)
        self._path.unlink(missing_ok=True)  # half a video

    def _encoded(self) -> Optional[Dict[str, Any]]:
        """What is to be said of the video when it is complete; None if it is given up."""
        with VideoWriter(self._path, TICKS_PER_S, self._height, self._width) as writer:
            while not self._given_up.is_set():
                try:
                    item = self._frames.get(timeout=_LOOK_AROUND_S)
                except queue.Empty:
                    continue
                if isinstance(item, dict):
                    return item
                writer.write(item)
        return None
