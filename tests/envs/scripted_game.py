"""A game for the server of Malmo's protocol whose frames are signed, and a program that serves it.

A frame says of which seed and episode it is, how many steps that has had, and with which keys the last one was made:
a frame that was invented, is late or belongs to something else is found out. The signature is read from the middles of
large tiles, so that it survives being resized. NumPy only.

    python -m tests.envs.scripted_game --port=0 --fault=error --fault_after=100
"""

from __future__ import annotations

import argparse
import zlib
from typing import NamedTuple

import numpy as np

from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.voxel.malmo_server import FAULTS, Fault, Tick

_COLUMNS, _ROWS, _BYTES = 16, 8, 24  # tiles across and down; bytes of the signature with its check
_FIELDS = (4, 2, 4, 3, 2, 2, 3)


class Signature(NamedTuple):
    """Of the last step: the keys as bits in the order of BUTTONS, the camera in hundredths of a degree. 0 at reset."""

    seed: int
    episode: int
    step: int
    buttons: int
    pitch: int
    yaw: int


def sign(image, signature):
    """Writes a signature into the upper half of an image, uint8 [H, W, 3]."""
    fields = [int(value) % 256**size for value, size in zip(signature, _FIELDS, strict=False)] + [0]
    data = b"".join(value.to_bytes(size, "big") for value, size in zip(fields, _FIELDS, strict=True))
    data += zlib.crc32(data).to_bytes(4, "big")
    for number in range(_BYTES // 3):
        image[_tile(image, number)] = tuple(data[3 * number : 3 * number + 3])


def read_signature(image):
    """The signature in an image of any size from 16 x 32 on; None if it is not genuine."""
    tiles = [image[_tile(image, number)] for number in range(_BYTES // 3)]
    data = bytes(int(value) for tile in tiles for value in tile[tile.shape[0] // 2, tile.shape[1] // 2])
    if zlib.crc32(data[:-4]).to_bytes(4, "big") != data[-4:]:
        return None
    values, at = [], 0
    for size in _FIELDS[:-1]:
        values.append(int.from_bytes(data[at : at + size], "big"))
        at += size
    signed = [value - 65536 if value >= 32768 else value for value in values[-2:]]
    return Signature(*values[:-2], *signed)


def buttons_as_bits(keys):
    return sum(int(keys[name]) << number for number, name in enumerate(BUTTONS))


def _tile(image, number):
    height, width = image.shape[:2]
    row, column = divmod(number, _COLUMNS)
    rows = slice(row * height // _ROWS, (row + 1) * height // _ROWS)
    return rows, slice(column * width // _COLUMNS, (column + 1) * width // _COLUMNS)


class ScriptedGame:
    """Every step counts as a log mined.

    Args:
      episode_length: steps until the player dies; 0: he does not.
    Attributes:
      chat: all that was said.
    """

    def __init__(self, episode_length=0):
        self._episode_length, self._episode, self.chat = episode_length, -1, []

    def reset(self, seed, mission):
        self._episode += 1
        self._step, self._seed = 0, seed
        rows, columns, channels = np.ogrid[: mission.size[0], : mission.size[1], :3]
        self._background = (rows * 7 + columns * 3 + channels * 50).astype(np.uint8)
        return self._tick(0, np.zeros(2))

    def step(self, keys):
        self._step += 1
        if "chat" in keys:
            self.chat.append(keys["chat"])
        return self._tick(buttons_as_bits(keys), keys["camera"])

    def _tick(self, buttons, camera):
        frame = self._background + np.uint8(self._step % 256)
        pitch, yaw = (round(100 * float(angle)) for angle in camera)
        sign(frame, Signature(self._seed, self._episode, self._step, buttons, pitch, yaw))
        dead = bool(self._episode_length) and self._step >= self._episode_length
        health = 0.0 if dead else 20.0
        info = {
            **({"mine_block": {"oak_log": self._step}} if self._step else {}),
            **({"custom": {"deaths": 1}} if dead else {}),
            "life_stats": {
                "life": health, "score": 0, "food": 20, "saturation": 5.0, "xp": 0, "is_alive": not dead, "air": 300,
                "name": "MineRLAgent0",
            },
            "health": health, "food_level": 20, "biome_name": "plains",
            "xpos": float(self._step), "ypos": 64.0, "zpos": 0.5, "pitch": 0.0, "yaw": 0.0,
            "inventory": [{"slot_id": 0, "type": "oak_log", "quantity": self._step % 64}],
            "equipped_items": {"mainhand": '{"type": "oak_log", "maxDamage": 0, "damage": 0}'},
            "isGuiOpen": False,
        }  # fmt: skip
        return Tick(frame, 0.0, dead, info)


def main():
    from minestudio_jax.serve_voxel import run

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--episode_length", type=int, default=0)
    parser.add_argument("--fault", default="none", choices=FAULTS)
    parser.add_argument("--fault_after", type=int, default=0)
    parser.add_argument("--fault_s", type=float, default=0.0)
    flags = parser.parse_args()
    fault = Fault(flags.fault, flags.fault_after, flags.fault_s)
    raise SystemExit(run(ScriptedGame(flags.episode_length), flags.port, "127.0.0.1", (360, 640), fault))


if __name__ == "__main__":
    main()
