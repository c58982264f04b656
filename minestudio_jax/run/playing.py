"""A person in the embedded world: one world, one action a tick, from a script or from the keyboard."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minestudio_jax.envs import actions, voxel
from minestudio_jax.envs.tasks import TICKS_PER_S
from minestudio_jax.envs.voxel import crafting
from minestudio_jax.envs.voxel.statistics import as_dict
from minestudio_jax.utils.video import VideoWriter

Step = tuple[dict[str, Any], int]  # keys that are down, and for how many ticks

VIDEO_SIZE = (360, 640)  # pixels
SCREEN_SIZE = (44, 100)  # characters are half as wide as high, and each shows two pixels, one above the other
_TURN_DEG = 6.0  # per key press
# Keys on the keyboard -> what they do in the tick in which they arrive.
KEYBOARD: dict[str, dict[str, Any]] = {
    "w": {"forward": 1}, "s": {"back": 1}, "a": {"left": 1}, "d": {"right": 1}, " ": {"jump": 1, "forward": 1},
    "f": {"attack": 1}, "e": {"use": 1}, "r": {"sprint": 1, "forward": 1}, "h": {"yaw": -_TURN_DEG},
    "l": {"yaw": _TURN_DEG}, "k": {"pitch": -_TURN_DEG}, "j": {"pitch": _TURN_DEG},
    **{str(i): {f"hotbar.{i}": 1} for i in range(1, 10)},
}  # fmt: skip
_HELP = "w a s d walk, space jump, r run, f attack (again: stop), e use, h j k l look, 1-9 hold, q quit"
_HOLD_TICKS = 4  # for which a key counts: terminals tell presses, not releases


class Session:
    """One episode after the other in one world, drawn and counted.

    Args:
      task, preset, seed: of the world.
      video: path of a video; "" is none.
    Raises:
      ValueError, OSError, ImportError: the task is unknown, or the video cannot be written.
    """

    def __init__(self, task: str, preset: str, seed: int, video: str) -> None:
        self.world = voxel.make(task, preset, "minerl", frame_skip=1, time_limit=1_000_000)
        self._step = jax.jit(self.world.step)
        self._frame = jax.jit(lambda state: self.world.render(state, *VIDEO_SIZE))
        self._screen = jax.jit(lambda state: self.world.render(state, 2 * SCREEN_SIZE[0], SCREEN_SIZE[1]))
        self._state = jax.jit(self.world.reset)(jax.random.key(seed))
        self._cleanup = ExitStack()
        self._video: VideoWriter | None = None
        if video:
            self._video = self._cleanup.enter_context(VideoWriter(Path(video), TICKS_PER_S, *VIDEO_SIZE))
        self._path = video
        self.ticks, self.reward = 0, 0.0
        self.ended = False
        self._info: dict[str, Any] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    def tick(self, pressed: dict[str, Any]) -> None:
        """One tick with these keys; "pitch" and "yaw" are degrees, "craft" a number."""
        keys = {key: np.int32(pressed.get(key, 0)) for key in (*actions.BUTTONS, "craft")}
        camera = np.array([pressed.get("pitch", 0.0), pressed.get("yaw", 0.0)], np.float32)
        self._state, timestep = self._step(self._state, {**keys, "camera": camera})
        told = jax.device_get(timestep)
        self.ticks += 1
        self.reward += float(told.reward)
        self.ended = bool(told.terminated)
        self._info = as_dict(told.info)
        if self._video is not None:
            self._video.write(np.asarray(self._frame(self._state)))

    def screen(self) -> np.ndarray:
        """What a terminal shows, uint8 [2 * rows, columns, 3]."""
        return np.asarray(self._screen(self._state))

    def summary(self) -> str:
        """What came of it, in a line or two."""
        counts = {event: names for event, names in self._info.items() if isinstance(names, dict) and names}
        lines = f"{self.ticks} ticks, reward {self.reward:g}, {counts or 'nothing counted'}"
        return f"{lines}\nwrote {self._path}" if self._path else lines


def parse_script(text: str) -> list[Step]:
    """Steps of (keys, ticks) from their text.

    Raises:
      ValueError: a step cannot be understood.
    """
    steps = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        keys, _, ticks = part.partition("*")
        if ticks and not ticks.strip().isdigit():
            raise ValueError(f"--script: {part!r} must end in '*' and a number of ticks")
        pressed: dict[str, Any] = {}
        for word in filter(None, (piece.strip() for piece in keys.split("+"))):
            name, _, value = word.partition("=")
            if name in ("pitch", "yaw"):
                try:
                    pressed[name] = float(value)
                except ValueError:
                    raise ValueError(f"--script: {word!r} needs a number of degrees, such as {name}=5") from None
            elif name == "craft" and value in crafting.NAMES:
                pressed[name] = crafting.NAMES.index(value)
            elif name == "craft":
                raise ValueError(f"--script: {value!r} cannot be crafted; known are {', '.join(crafting.NAMES[1:])}")
            elif name in actions.BUTTONS and not value:
                pressed[name] = 1
            elif name != "wait":
                raise ValueError(f"--script: there is no key {word!r}; known are wait, {', '.join(actions.BUTTONS)}")
        steps.append((pressed, int(ticks or 1)))
    if not steps:
        raise ValueError("--script is empty: give steps such as 'forward*20; attack*60'")
    return steps


def play_by_script(session: Session, steps: Sequence[Step]) -> None:
    """Does what the script says, as fast as it goes; ends early if the player dies."""
    for pressed, ticks in steps:
        for _ in range(ticks):
            session.tick(pressed)
            if session.ended:
                return


def check_terminal() -> None:
    """Raises ValueError if there is no terminal to play on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError("the keyboard needs a terminal: give --script instead")


def play_by_keyboard(session: Session) -> None:
    """Plays on the terminal until 'q' or the end, 20 ticks a second."""
    held: dict[str, int] = {}  # key -> ticks for which it still counts
    attacking = False
    with _raw_terminal():
        while not session.ended:
            due = time.monotonic() + 1 / TICKS_PER_S
            for key in _keys_pressed():
                if key == "q":
                    return
                if key == "f":
                    attacking = not attacking
                elif key in KEYBOARD:
                    held[key] = 1 if KEYBOARD[key].keys() & {"pitch", "yaw"} else _HOLD_TICKS
            pressed: dict[str, Any] = {"attack": int(attacking)}
            for key in held:
                pressed |= KEYBOARD[key]
            session.tick(pressed)
            held = {key: ticks - 1 for key, ticks in held.items() if ticks > 1}
            text = f"reward {session.reward:g}  tick {session.ticks}{'  attacking' if attacking else ''}"
            sys.stdout.write(f"\x1b[H{as_text(session.screen())}\x1b[0m{text}\x1b[K\r\n{_HELP}\x1b[K")
            sys.stdout.flush()
            time.sleep(max(0.0, due - time.monotonic()))


def as_text(image: np.ndarray) -> str:
    """A picture as coloured half blocks, two rows of pixels in a line of characters."""
    lines = []
    for above, below in zip(image[::2], image[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{x};{y};{z}m▀"
            for (r, g, b), (x, y, z) in zip(above.tolist(), below.tolist(), strict=True)
        )
        lines.append("".join(cells))
    return "\x1b[0m\r\n".join(lines) + "\x1b[0m\r\n"


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys arrive one by one and unseen; everything is put back behind."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[2J\x1b[?25l")
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[0m\n")


def _keys_pressed() -> str:
    """What has been typed since the last call; does not wait."""
    typed = ""
    while select.select([sys.stdin], [], [], 0)[0]:
        typed += os.read(sys.stdin.fileno(), 1).decode(errors="ignore")
    return typed
