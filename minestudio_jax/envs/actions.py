"""VPT's action space: keyboard and mouse as two categorical components, and small sets of such actions.

Simulator side: NumPy only, Python 3.8 syntax. Reference: Baker et al. 2022 (arXiv:2206.11795), appendix.

`buttons` (0..8640) joins nine groups of mutually exclusive keys, the first varying slowest; 8640 is "inventory", which
excludes everything else. `camera` (0..120) joins two 11-bin quantised angles, pitch first; it counts only if the
last group, the "camera" meta key, is on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Collection, Dict, Mapping, Tuple

import numpy as np

BUTTONS = (
    "attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory",
    "hotbar.1", "hotbar.2", "hotbar.3", "hotbar.4", "hotbar.5", "hotbar.6", "hotbar.7", "hotbar.8", "hotbar.9",
)  # fmt: skip

# Options of each group beside "none". Of several pressed keys of a group the last counts, except that opposite
# directions cancel.
_GROUPS: Tuple[Tuple[str, ...], ...] = (
    tuple("hotbar.%d" % i for i in range(1, 10)),
    ("forward", "back"),
    ("left", "right"),
    ("sprint", "sneak"),
    ("use",),
    ("drop",),
    ("attack",),
    ("jump",),
    ("camera",),
)
_CANCELLING = (("forward", "back"), ("left", "right"))

INVENTORY = 8640
NUM_BUTTONS = INVENTORY + 1

CAMERA_MAX_DEG = 10.0
CAMERA_BIN_SIZE = 2
CAMERA_MU = 10.0
CAMERA_BINS = 11
CAMERA_NULL_BIN = CAMERA_BINS // 2
NUM_CAMERA = CAMERA_BINS * CAMERA_BINS
CAMERA_NULL = CAMERA_NULL_BIN * CAMERA_BINS + CAMERA_NULL_BIN

VPT_ACTION_SPEC = {"buttons": NUM_BUTTONS, "camera": NUM_CAMERA}


def _strides() -> np.ndarray:
    sizes = np.array([len(group) + 1 for group in _GROUPS])
    return np.append(np.cumprod(sizes[::-1])[::-1][1:], 1)


_STRIDES = _strides()


def _decode_tables() -> Tuple[np.ndarray, np.ndarray]:
    """Keys uint8 [8641, 20] and whether the camera is on, bool [8641]."""
    keys = np.zeros((NUM_BUTTONS, len(BUTTONS)), np.uint8)
    camera_on = np.zeros(NUM_BUTTONS, bool)
    index = np.arange(INVENTORY)
    for group, stride in zip(_GROUPS, _STRIDES):
        option = index // stride % (len(group) + 1)
        for number, name in enumerate(group, start=1):
            if name == "camera":
                camera_on[:INVENTORY] = option == number
            else:
                keys[:INVENTORY, BUTTONS.index(name)] = option == number
    keys[INVENTORY, BUTTONS.index("inventory")] = 1
    camera_on[INVENTORY] = True  # as in the reference: an "inventory" with a moving camera moves it
    return keys, camera_on


def camera_to_bins(degrees: np.ndarray) -> np.ndarray:
    """Quantises angles by mu-law (mu = 10), half to even, in the precision they come in.

    Args:
      degrees: float [...], clipped to +-10.
    Returns:
      int [...], 0..10; 5 is no motion.
    """
    x = np.clip(degrees, -CAMERA_MAX_DEG, CAMERA_MAX_DEG) / CAMERA_MAX_DEG
    # math.log: a NumPy scalar would turn float32 into float64.
    y = np.sign(x) * (np.log(1.0 + CAMERA_MU * np.abs(x)) / math.log(1.0 + CAMERA_MU)) * CAMERA_MAX_DEG
    return np.round((y + CAMERA_MAX_DEG) / CAMERA_BIN_SIZE).astype(np.int64)


def bins_to_camera(bins: np.ndarray) -> np.ndarray:
    """The angle in degrees that stands for a bin; inverse of `camera_to_bins` on its values. float64 [...]."""
    y = (np.asarray(bins) * float(CAMERA_BIN_SIZE) - CAMERA_MAX_DEG) / CAMERA_MAX_DEG
    return np.sign(y) * ((1.0 + CAMERA_MU) ** np.abs(y) - 1.0) / CAMERA_MU * CAMERA_MAX_DEG


KEY_TABLE, CAMERA_ON_TABLE = _decode_tables()
CAMERA_DEG_TABLE = np.stack(
    [bins_to_camera(np.arange(NUM_CAMERA) // CAMERA_BINS), bins_to_camera(np.arange(NUM_CAMERA) % CAMERA_BINS)], axis=1
)  # float64 [121, 2], pitch and yaw


def action_masks(ruled_out: Collection[str]) -> Dict[str, np.ndarray]:
    """Which agent actions do without some keys.

    Args:
      ruled_out: of BUTTONS, and "camera" for every turn of it.
    Returns:
      {"buttons": uint8 [8641], "camera": uint8 [121]}, 0 where a choice is ruled out; there is always one left.
    """
    columns = [BUTTONS.index(key) for key in ruled_out if key != "camera"]
    buttons: np.ndarray = np.logical_not(KEY_TABLE[:, columns].any(axis=1))
    camera: np.ndarray = np.ones(NUM_CAMERA, bool)
    if "camera" in ruled_out:
        turns = CAMERA_ON_TABLE.copy()
        turns[INVENTORY] = False  # it moves the camera only if that is moved
        buttons &= ~turns
        camera = np.arange(NUM_CAMERA) == CAMERA_NULL
    return {"buttons": buttons.astype(np.uint8), "camera": camera.astype(np.uint8)}


def encode(env_actions: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Keyboard and mouse to agent action.

    Args:
      env_actions: each of BUTTONS -> 0/1 [N]; "camera" -> float [N, 2], degrees, pitch (down is positive) and yaw.
        Other keys (ESC, pickItem, swapHands) are ignored.
    Returns:
      {"buttons": int32 [N, 1], "camera": int32 [N, 1]}.
    """
    bins = camera_to_bins(np.asarray(env_actions["camera"]))
    moving = (bins != CAMERA_NULL_BIN).any(axis=-1)
    buttons = np.zeros(len(bins), np.int64)
    for group, stride in zip(_GROUPS, _STRIDES):
        option = np.zeros(len(bins), np.int64)
        pressed = [moving if name == "camera" else np.asarray(env_actions[name]) != 0 for name in group]
        for number, is_down in enumerate(pressed, start=1):
            option = np.where(is_down, number, option)
        if group in _CANCELLING:
            option = np.where(pressed[0] & pressed[1], 0, option)
        buttons += option * stride
    camera = bins[:, 0] * CAMERA_BINS + bins[:, 1]
    inventory = np.asarray(env_actions["inventory"]) != 0
    buttons = np.where(inventory, INVENTORY, buttons)
    camera = np.where(inventory, CAMERA_NULL, camera)
    return {"buttons": buttons.astype(np.int32)[:, None], "camera": camera.astype(np.int32)[:, None]}


def decode(agent_actions: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Agent action to keyboard and mouse; inverse of `encode` on its values.

    Args:
      agent_actions: {"buttons": int [N, 1], "camera": int [N, 1]}.
    Returns:
      each of BUTTONS -> int64 0/1 [N]; "camera" -> float64 [N, 2], degrees.
    """
    buttons, camera = np.asarray(agent_actions["buttons"])[:, 0], np.asarray(agent_actions["camera"])[:, 0]
    keys = KEY_TABLE[buttons]
    degrees = np.where(CAMERA_ON_TABLE[buttons][:, None], CAMERA_DEG_TABLE[camera], 0.0)
    result = {name: keys[:, i].astype(np.int64) for i, name in enumerate(BUTTONS)}
    result["camera"] = degrees
    return result


def null_action(num: int = 1) -> Dict[str, np.ndarray]:
    """The agent action that does nothing, `num` times."""
    return {"buttons": np.zeros((num, 1), np.int32), "camera": np.full((num, 1), CAMERA_NULL, np.int32)}


@dataclass(frozen=True)
class DiscreteActions:
    """A small set of agent actions to choose from, as tasks declare it.

    Attributes:
      names: what each choice does, in words.
      buttons: int32 [n], agent action of each.
      camera: int32 [n].
    """

    names: Tuple[str, ...]
    buttons: np.ndarray
    camera: np.ndarray

    @classmethod
    def make(cls, choices: Mapping[str, Tuple[Tuple[str, ...], float, float]]) -> "DiscreteActions":
        """From name -> (keys held, pitch, yaw in degrees per tick)."""
        env_actions = {key: np.array([key in keys for keys, _, _ in choices.values()], np.int64) for key in BUTTONS}
        camera = np.array([[pitch, yaw] for _, pitch, yaw in choices.values()])
        agent = encode({**env_actions, "camera": camera})
        return cls(tuple(choices), agent["buttons"][:, 0], agent["camera"][:, 0])
