"""What an environment's process and its parent say to each other, version 3.

Simulator side: NumPy and the standard library only, Python 3.8 syntax; both ends run this code, possibly under
different interpreters.

Messages are the packets of a SOCK_SEQPACKET socket, at most MAX_MESSAGE_BYTES each. Nothing is pickled. The parent
asks, the process answers each request with one message; it never speaks unasked. A message's first byte is its kind:

    "S"  request of a step: the version of the policy that chose the action, 0 if it is none of a run's; and one number
         for each action component, in the order of their sorted names; all little-endian int32
    "A"  answer to it: the reward, a little-endian float64; one byte of flags, 1 terminated, 2 truncated; and, if this
         step ended the episode and the environment had something to say, its info, a JSON object in UTF-8
    "{"  everything else, JSON objects in UTF-8 whose `type` says what they are:

    {"type": "start", "protocol": 3, "factory": "package.module:function", "index": 0, "seed": 1, "options": {},
     "resize": [128, 128] or null, "deadlines_s": {"start": 300, "reset": 240, "step": 60}}
        -> {"type": "started", "spec": {"observation": {name: [[H, W, 3], "uint8"]}, "action": {name: 12}}}
    {"type": "reset", "seed": 7 or null}
        -> {"type": "reset"}
    {"type": "close"}
        -> nothing: the process ends, which closes the socket
    any request
        -> {"type": "failed", "cause": "exception", "message": "...", "permanent": false}, after which the process ends

An info travels only with the last step of an episode: nobody reads the others, and they would cost more than the rest
of the step. Observations do not travel at all: they lie in memory shared by the two, `ObservationMemory`, and the image
there has the size of `resize`, if one was given. An episode's last observation and the one to act on have a place each,
so the former survives the reset that follows it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minestudio_jax.envs.env import Action, ArraySpec, EnvironmentSpec, Observation

PROTOCOL_VERSION = 3
MAX_MESSAGE_BYTES = 64 * 1024  # well inside a socket's buffer, so that sending to a process never blocks
STEP_REQUEST, STEP_ANSWER = ord("S"), ord("A")  # first byte of a message
CURRENT, FINAL = 0, 1  # slots: the observation to act on, and the last one of an episode that ended

_ANSWER = struct.Struct("<BdB")
_LARGEST_REWARD = float(np.finfo(np.float32).max)  # rewards are kept in float32
_ALIGNMENT = 64  # bytes, a cache line


class ProtocolError(ValueError):
    """What came over the socket is no message, or a message is too long to be sent."""


class StepOutcome(NamedTuple):
    """What came of one action.

    Attributes:
      info: of the step that ended an episode: numbers, strings, and lists and dicts of them, as the environment gave
        them; arrays became None. Of every other step: empty.
    """

    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


def pack(message: Mapping[str, Any]) -> bytes:
    """A JSON message as it is sent. NumPy scalars in it become numbers; what JSON cannot hold becomes null.

    Raises:
      ProtocolError: it is longer than MAX_MESSAGE_BYTES.
    """
    return _checked(_json(message), f"a {message['type']!r} message")


def unpack(data: bytes) -> Any:
    """Inverse of `pack`: an object with a `type`.

    Raises:
      ProtocolError: the bytes are no such message.
    """
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError(f"not a message: {data[:64]!r}")
    return message


def is_reward(number: float) -> bool:
    """Whether it is a finite number in float32, too."""
    return abs(number) <= _LARGEST_REWARD  # False for NaN


def pack_outcome(outcome: StepOutcome) -> bytes:
    """The answer to a step.

    Raises:
      ProtocolError: it is longer than MAX_MESSAGE_BYTES.
    """
    reward, terminated, truncated, info = outcome
    answer = _ANSWER.pack(STEP_ANSWER, reward, terminated | truncated << 1)
    if info and (terminated or truncated):
        answer = _checked(answer + _json(info), "an episode's last step")
    return answer


def unpack_outcome(data: bytes) -> StepOutcome:
    """Inverse of `pack_outcome`.

    Raises:
      ProtocolError: the bytes are no answer to a step.
    """
    if len(data) < _ANSWER.size:
        raise ProtocolError(f"not a message: {data[:64]!r}")
    kind, reward, flags = _ANSWER.unpack_from(data)
    info = {}
    if len(data) > _ANSWER.size:
        try:
            info = json.loads(data[_ANSWER.size :])
        except ValueError:
            kind = 0
    if kind != STEP_ANSWER or flags > 3 or not is_reward(reward) or not isinstance(info, dict):
        raise ProtocolError(f"not a message: {data[:64]!r}")
    return StepOutcome(reward, flags & 1 != 0, flags & 2 != 0, info)


class StepRequests:
    """The requests of steps for one action space.

    Args:
      components: names of the action's components.
    """

    def __init__(self, components: Iterable[str]) -> None:
        self._names = sorted(components)
        self._values = struct.Struct(f"<{1 + len(self._names)}i")

    def pack(self, action: Mapping[str, np.ndarray], version: int = 0) -> list[bytes]:
        """A request for each of K environments.

        Args:
          action: name -> int32 [K, 1].
          version: of the policy that chose them, below 2**31; 0: none of a run's.
        """
        rows = np.stack([action[name][:, 0] for name in self._names], axis=1).astype("<i4")
        begin, data, size = b"S" + struct.pack("<i", version), rows.tobytes(), self._values.size - 4
        return [begin + data[at : at + size] for at in range(0, len(data), size)]

    def unpack(self, request: bytes) -> tuple[int, Action]:
        """Version and action of one request; the action: name -> int32 [1].

        Raises:
          ProtocolError: it is that of another action space.
        """
        if len(request) != 1 + self._values.size:
            raise ProtocolError(f"not a step with the components {self._names}: {request[:64]!r}")
        values = np.array(self._values.unpack_from(request, 1), np.int32)
        return int(values[0]), {name: values[i : i + 1] for i, name in enumerate(self._names, 1)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, skipkeys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else None


def _checked(message: bytes, what: str) -> bytes:
    if len(message) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"{what} takes {len(message)} bytes, at most {MAX_MESSAGE_BYTES} fit: make the info of the environment, or "
            "env.options, smaller"
        )
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
