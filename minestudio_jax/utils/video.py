"""Writing videos: H.264 in MP4, through PyAV's own ffmpeg."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class VideoWriter:
    """A video that grows frame by frame; complete when closed.

    Args:
      path: ends in .mp4.
      fps: frames per second.
      height, width: of every frame, pixels; even numbers, as H.264 demands.
    Raises:
      ImportError: PyAV is not installed; says how to.
      ValueError: the path does not end in .mp4, or a side is odd.
      OSError: the path cannot be written.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        if path.suffix != ".mp4":
            raise ValueError(f"{path} must end in .mp4")
        if height % 2 or width % 2:
            raise ValueError(f"a video's height and width must be even, not {height} and {width}")
        try:
            import av
        except ImportError:
            raise ImportError("videos need PyAV: pip install 'minestudio_jax[video]'") from None
        self._container: Any = av.open(str(path), "w")
        self._stream = self._container.add_stream("h264", rate=fps)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._frame_of = av.VideoFrame.from_ndarray

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 [height, width, 3], RGB."""
        self._container.mux(self._stream.encode(self._frame_of(frame, format="rgb24")))

    def close(self) -> None:
        """Completes the file; harmless if called twice."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
