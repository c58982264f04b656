"""What an environment's process and its parent say to each other, version 1.

Simulator side: NumPy and the standard library only, Python 3.8 syntax; both ends run this code, possibly under
different interpreters.

Messages go over a stream socket: four bytes, the length as an unsigned big-endian integer, then that many bytes of
UTF-8 JSON, an object whose `type` says what it is. Nothing is pickled. The parent asks, the process answers each
request with one message:

    {"type": "start", "protocol": 1, "factory": "package.module:function", "index": 0, "seed": 1, "options": {},
     "deadlines_s": {"start": 300, "reset": 240, "step": 60}}
        -> {"type": "started", "spec": {"observation": {name: [[H, W, 3], "uint8"]}, "action": {name: 12}}}
    {"type": "reset", "seed": 7 or null}
        -> {"type": "reset"}
    {"type": "step", "action": {name: [3]}}
        -> {"type": "step", "reward": 0.5, "terminated": false, "truncated": false, "info": {}}
    {"type": "close"}
        -> nothing: the process ends, which closes the socket
    any of them
        -> {"type": "failed", "message": "...", "permanent": false}, after which the process ends

Observations do not travel in messages: they lie in memory shared by the two, `ObservationMemory`.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec, Observation

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024  # well inside a socket's buffer, so that sending to a process never blocks
CURRENT, FINAL = 0, 1  # slots: the observation to act on, and the last one of an episode that ended

_LENGTH_BYTES = 4
_ALIGNMENT = 64  # bytes, a cache line


class ProtocolError(ValueError):
    """What came over the socket is no message, or a message is too long to be sent."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as it goes over the socket. NumPy scalars in it become numbers; what JSON cannot hold becomes null.

    Raises:
      ProtocolError: it is longer than MAX_MESSAGE_BYTES.
    """
    body = json.dumps(message, skipkeys=True, default=_plain).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"a {message['type']!r} message takes {len(body)} bytes, at most {MAX_MESSAGE_BYTES} fit: make the info of "
            "the environment, or env.options, smaller"
        )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else None


class MessageReader:
    """Cuts the stream of one socket into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes bytes as they came."""
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """The next complete message, if there is one.

        Raises:
          ProtocolError: the bytes are no message.
        """
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if end > _LENGTH_BYTES + MAX_MESSAGE_BYTES:
            raise ProtocolError(f"not a message: {bytes(self._buffer[:64])!r}")
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        try:
            message = json.loads(body)
        except ValueError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ProtocolError(f"not a message: {body[:64]!r}")
        return message


def spec_to_json(spec: EnvironmentSpec) -> dict[str, Any]:
    """A spec as it stands in a message; it is normalised, so equal specs have equal messages."""
    observation = {n: [[int(s) for s in a.shape], np.dtype(a.dtype).name] for n, a in spec.observation.items()}
    return {"observation": observation, "action": {name: int(size) for name, size in spec.action.items()}}


def spec_from_json(message: dict[str, Any]) -> EnvironmentSpec:
    """Inverse of `spec_to_json`."""
    observation = {name: ArraySpec(tuple(shape), dtype) for name, (shape, dtype) in message["observation"].items()}
    return EnvironmentSpec(observation, dict(message["action"]))


def new_memory_fd() -> int:
    """File descriptor of an empty piece of memory without a name.

    Two processes share it by inheriting the descriptor. Having no name it cannot be left behind: the kernel
    frees it with the last process that holds it, whichever way that one dies, and no resource tracker of either
    interpreter has a say. Nor does the size of /dev/shm, which containers keep small, limit it.
    """
    return os.memfd_create("minestudio_jax_observations", os.MFD_CLOEXEC)


class ObservationMemory:
    """The two observation slots of one environment, as arrays over shared memory.

    Args:
      fd: from `new_memory_fd`; the caller may close it afterwards.
      spec: of the environment; decides the layout, which is the same on both sides.
      allocate: give the memory its size; one side does, before the other one maps it.
    Attributes:
      slots: for CURRENT and FINAL, name -> array [...] of the spec's shape and dtype.
    """

    def __init__(self, fd: int, spec: EnvironmentSpec, allocate: bool = False) -> None:
        size, offsets = 0, {}
        for slot in (CURRENT, FINAL):
            for name, array in sorted(spec.observation.items()):
                offsets[slot, name] = size
                num_bytes = int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
                size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        size = max(size, 1)  # an empty map is not possible
        if allocate:
            os.posix_fallocate(fd, 0, size)  # takes the pages now: a lack of memory is an error here, not a crash later
        # Never closed by hand: an array handed out keeps it mapped, so that no reader can hit a hole.
        memory = mmap.mmap(fd, size)
        self.slots: tuple[Observation, Observation] = (
            {n: _array(memory, a, offsets[CURRENT, n]) for n, a in spec.observation.items()},
            {n: _array(memory, a, offsets[FINAL, n]) for n, a in spec.observation.items()},
        )


def _array(memory: mmap.mmap, spec: ArraySpec, offset: int) -> np.ndarray:
    return np.ndarray(spec.shape, spec.dtype, buffer=memory, offset=offset)
