"""The program inside an environment's process: builds one environment and answers its parent.

Simulator side: NumPy and the standard library only, Python 3.8 syntax; runs under `env.python`. It is started by
`rollout/env_worker.py` as `python <this file> <socket fd> <memory fd> <label>`, leads a process group of its own, and
what the environment prints goes to the instance's log. `host_protocol.py` describes the conversation.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any, Dict, Optional, cast

import numpy as np


def _make_package_importable() -> None:
    """Makes `minestudio_jax` the package this file lies in, and that package only.

    Under a foreign interpreter the folder around the package may be another interpreter's site-packages, of which
    nothing else may be seen from here; and this file's own folder, which Python puts first on the import path, holds
    modules named like the simulators they adapt.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    package = os.path.dirname(folder)
    spec = importlib.util.spec_from_file_location(
        "minestudio_jax", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["minestudio_jax"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["minestudio_jax"])


if __name__ == "__main__":
    _make_package_importable()

from minestudio_jax.envs.env import (  # noqa: E402
    ArraySpec,
    Environment,
    EnvironmentFailure,
    EnvironmentSpec,
    MisconfiguredEnvironment,
    Observation,
)
from minestudio_jax.envs.host_protocol import (  # noqa: E402
    CURRENT,
    FINAL,
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    STEP_REQUEST,
    ObservationMemory,
    ProtocolError,
    StepOutcome,
    StepRequests,
    is_reward,
    pack,
    pack_outcome,
    spec_to_json,
    unpack,
)
from minestudio_jax.envs.resize import resize_bilinear  # noqa: E402


class HostFailure(EnvironmentFailure):
    """A failure that the host itself found.

    Attributes:
      cause: one of the causes that `rollout/env_pool.py` lists.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class PermanentFailure(HostFailure):
    """The environment cannot be built as it is configured: starting it again would be of no use."""

    def __init__(self, message: str) -> None:
        super().__init__("start", message)


class Host:
    """One environment and the memory its observations are written to.

    Args:
      memory_fd: shared memory, still empty.
      request: the `start` message.
    Attributes:
      spec: of what the parent sees, images resized.
    Raises:
      PermanentFailure: the factory cannot be imported, or what it builds declares no usable spec.
      Exception: whatever the factory raises.
    """

    def __init__(self, memory_fd: int, request: Dict[str, Any]) -> None:
        if request["protocol"] != PROTOCOL_VERSION:
            raise PermanentFailure(f"the parent speaks protocol {request['protocol']}, this is {PROTOCOL_VERSION}")
        factory = load_factory(request["factory"])
        self._env: Environment = factory(index=request["index"], seed=request["seed"], **request["options"])
        self._wants_version = hasattr(self._env, "policy_version")
        given = check_spec(getattr(self._env, "spec", None))
        self._given = {n: (tuple(int(s) for s in a.shape), np.dtype(a.dtype)) for n, a in given.observation.items()}
        self._names = set(self._given)
        self._resize = request["resize"]
        self.spec = given if self._resize is None else resized_spec(given, *self._resize)
        self._requests = StepRequests(self.spec.action)
        try:
            self._slots = ObservationMemory(memory_fd, self.spec, allocate=True).slots
        except OSError as error:
            raise EnvironmentFailure(f"no shared memory for two observations ({error}); free memory") from error

    def reset(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Answers a `reset` message.

        Raises:
          HostFailure: what the environment returned breaks the contract, or reports an error.
          Exception: whatever the environment raises.
        """
        result = self._env.reset(seed=request["seed"])
        if not isinstance(result, tuple) or len(result) != 2:
            raise HostFailure(
                "garbage", "reset must return (observation, info); this environment returns something else"
            )
        _refuse_error(result[1])
        self._write(CURRENT, result[0])
        return {"type": "reset"}

    def step(self, request: bytes) -> StepOutcome:
        """Does a step; raises as `reset` does."""
        version, action = self._requests.unpack(request)
        if self._wants_version:
            cast(Any, self._env).policy_version = version  # the contract does not demand it
        result = self._env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise HostFailure(
                "garbage",
                "step must return (observation, reward, terminated, truncated, info); this environment returns "
                "something else (before Gym 0.26 there were four)",
            )
        obs, reward, terminated, truncated, info = result
        _refuse_error(info)
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        if not is_reward(reward):
            raise HostFailure(
                "garbage", f"the reward is {reward}; the environment must return a finite number that float32 can hold"
            )
        self._write(FINAL if terminated or truncated else CURRENT, obs)
        return StepOutcome(reward, terminated, truncated, info)

    def close(self) -> None:
        self._env.close()

    def _write(self, slot: int, obs: Observation) -> None:
        if set(obs) != self._names:
            raise HostFailure(
                "garbage",
                f"the observation holds {sorted(obs)}, the environment's spec declares {sorted(self._names)}",
            )
        places = self._slots[slot]
        for name, (shape, dtype) in self._given.items():
            array = np.asarray(obs[name])
            if array.shape != shape or array.dtype != dtype:
                raise HostFailure(
                    "garbage",
                    f"observation {name!r} is {array.dtype} {list(array.shape)}, the environment's spec declares "
                    f"{dtype} {list(shape)}",
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise HostFailure("garbage", f"observation {name!r} holds numbers that are not finite")
            if self._resize is not None and name == "image":
                array = resize_bilinear(array, *self._resize)
            places[name][...] = array


def _refuse_error(info: Dict[str, Any]) -> None:
    """MineRL tells a broken step by an `error` in its info, and invents the observation."""
    error = info.get("error")
    if error:
        raise HostFailure("error_info", f"the environment reports an error in its info: {error}")


def load_factory(path: str) -> Any:
    """The function that `package.module:function` names.

    Raises:
      PermanentFailure: there is none.
    """
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PermanentFailure(
            f"env.factory={path!r}: {sys.executable} cannot import {module_name!r} ({error}); install what is missing "
            "there, name another interpreter in env.python, or start the program from the module's directory"
        ) from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise PermanentFailure(f"env.factory={path!r}: {module_name!r} has no function {function_name!r}")
    return factory


def check_spec(spec: Any) -> EnvironmentSpec:
    """The spec, if arrays can be made by it.

    Raises:
      PermanentFailure: they cannot.
    """
    remedy = "an environment of env.factory must have an attribute `spec`, a minestudio_jax.envs.env.EnvironmentSpec"
    if not isinstance(spec, EnvironmentSpec):
        raise PermanentFailure(f"{remedy}; it is {spec!r}")
    for name, array in spec.observation.items():
        try:
            usable = not np.dtype(array.dtype).hasobject and all(int(size) >= 0 for size in array.shape)
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise PermanentFailure(f"{remedy}; its observation {name!r} has no fixed shape and numeric dtype: {array}")
    return spec


def resized_spec(spec: EnvironmentSpec, height: int, width: int) -> EnvironmentSpec:
    """The spec with an image of another size.

    Raises:
      PermanentFailure: it has no image that could be resized.
    """
    image = spec.observation.get("image")
    if image is None or np.dtype(image.dtype) != np.uint8 or len(image.shape) != 3 or not all(image.shape):
        raise PermanentFailure(
            f"env.resize={height},{width} needs an observation 'image', uint8 [H, W, C]; this environment's are "
            f"{dict(spec.observation)}: leave env.resize empty"
        )
    resized = ArraySpec((height, width, int(image.shape[2])), "uint8")
    return EnvironmentSpec({**spec.observation, "image": resized}, spec.action)


class Watchdog:
    """Leaves the stack of a hang in the log, just before the parent's deadline.

    To set the alarm takes a new thread. So it is not set for every request, but only when the one that is set would
    come too early: it comes between 85 and 90 % of the deadline after the request.

    Args:
      deadlines_s: by kind of request.
    Attributes:
      patience_s: after so long without a request call `rest`.
    """

    def __init__(self, deadlines_s: Dict[str, float]) -> None:
        self._deadlines_s = deadlines_s
        self._set_for, self._renew_at = "", 0.0
        self.patience_s = 0.5 * min(deadlines_s.values())

    def begin(self, kind: str) -> None:
        """A request of that kind has come."""
        now = time.monotonic()
        if kind != self._set_for or now >= self._renew_at:
            limit_s = self._deadlines_s[kind]
            faulthandler.dump_traceback_later(0.9 * limit_s, file=2)
            self._set_for, self._renew_at = kind, now + 0.05 * limit_s

    def rest(self) -> None:
        """Takes the alarm away until the next request."""
        faulthandler.cancel_dump_traceback_later()
        self._set_for = ""


def serve(control: socket.socket, memory_fd: int) -> None:
    """Answers requests until the parent says `close` or goes away, or the environment fails."""
    host: Optional[Host] = None
    watchdog: Optional[Watchdog] = None
    try:
        while True:
            try:
                data = control.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                if watchdog is not None:
                    watchdog.rest()
                continue
            if not data:
                return
            try:
                if data[0] == STEP_REQUEST and host is not None and watchdog is not None:
                    watchdog.begin("step")
                    answer = pack_outcome(host.step(data))
                else:
                    request = unpack(data)
                    kind = request["type"]
                    if kind == "close":
                        return
                    if kind == "start":
                        watchdog = Watchdog(request["deadlines_s"])
                        watchdog.begin(kind)
                        _set_receive_timeout(control, watchdog.patience_s)
                        host = Host(memory_fd, request)
                        answer = pack({"type": "started", "spec": spec_to_json(host.spec)})
                    elif kind == "reset" and host is not None and watchdog is not None:
                        watchdog.begin(kind)
                        answer = pack(host.reset(request))
                    else:
                        raise ProtocolError(f"{kind!r} cannot be asked now")
            except Exception as error:
                traceback.print_exc()
                control.sendall(pack(failed_message(error)))
                return
            control.sendall(answer)
    finally:
        if watchdog is not None:
            watchdog.rest()
        if host is not None:
            host.close()


def _set_receive_timeout(control: socket.socket, timeout_s: float) -> None:
    """The kernel's own: it costs no system call, as Python's would, and leaves the sending side as it is."""
    seconds, fraction = divmod(timeout_s, 1.0)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6) or 1))


def failed_message(error: Exception) -> Dict[str, Any]:
    """What the parent is told of an error."""
    return {
        "type": "failed",
        "cause": error.cause if isinstance(error, EnvironmentFailure) else "exception",
        "message": (str(error) if isinstance(error, EnvironmentFailure) else f"{type(error).__name__}: {error}")[:4096],
        "permanent": isinstance(error, (PermanentFailure, MisconfiguredEnvironment)),
    }


def die_with_parent(control: socket.socket) -> None:
    """Starts a thread that kills this process group once the parent's end of the socket is closed.

    It closes also by the parent's SIGKILL, when nobody is left to end an environment that is in the middle of a step.
    """
    hangup = select.poll()
    hangup.register(control, 0)  # asks for no event: a hangup is always reported

    def wait() -> None:
        hangup.poll()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    control, memory_fd = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for fd in (control.fileno(), memory_fd):
        os.set_inheritable(fd, False)  # the simulator's own processes must not keep the socket open
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # the group that is killed must be this process's own
    faulthandler.enable()
    die_with_parent(control)
    serve(control, memory_fd)


if __name__ == "__main__":
    main()
