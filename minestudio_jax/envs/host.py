"""The program inside an environment's process: builds one environment and answers its parent.

Simulator side: NumPy and the standard library only, Python 3.8 syntax; runs under `env.python`. It is started by
`rollout/env_worker.py` as `python <this file> <socket fd> <memory fd> <label>`, leads a process group of its own, and
what the environment prints goes to the instance's log. `host_protocol.py` describes the conversation.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import math
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any

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

from minestudio_jax.envs.env import Environment, EnvironmentFailure, EnvironmentSpec, Observation  # noqa: E402
from minestudio_jax.envs.host_protocol import (  # noqa: E402
    CURRENT,
    FINAL,
    PROTOCOL_VERSION,
    MessageReader,
    ObservationMemory,
    pack,
    spec_to_json,
)


class PermanentFailure(EnvironmentFailure):
    """The environment cannot be built as it is configured: starting it again would be of no use."""


class Host:
    """One environment and the memory its observations are written to.

    Args:
      memory_fd: shared memory, still empty.
      request: the `start` message.
    Raises:
      PermanentFailure: the factory cannot be imported, or what it builds declares no usable spec.
      Exception: whatever the factory raises.
    """

    def __init__(self, memory_fd: int, request: dict[str, Any]) -> None:
        if request["protocol"] != PROTOCOL_VERSION:
            raise PermanentFailure(f"the parent speaks protocol {request['protocol']}, this is {PROTOCOL_VERSION}")
        factory = load_factory(request["factory"])
        self._env: Environment = factory(index=request["index"], seed=request["seed"], **request["options"])
        self.spec = check_spec(getattr(self._env, "spec", None))
        try:
            self._slots = ObservationMemory(memory_fd, self.spec, allocate=True).slots
        except OSError as error:
            raise EnvironmentFailure(f"no shared memory for two observations ({error}); free memory") from error

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        result = self._env.reset(seed=request["seed"])
        if not isinstance(result, tuple) or len(result) != 2:
            raise EnvironmentFailure("reset must return (observation, info); this environment returns something else")
        self._write(CURRENT, result[0])
        return {"type": "reset"}

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        result = self._env.step({name: np.array(value, np.int32) for name, value in request["action"].items()})
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvironmentFailure(
                "step must return (observation, reward, terminated, truncated, info); this environment returns "
                "something else (before Gym 0.26 there were four)"
            )
        obs, reward, terminated, truncated, info = result
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        if not math.isfinite(reward):
            raise EnvironmentFailure(f"the reward is {reward}; the environment must return a finite number")
        self._write(FINAL if terminated or truncated else CURRENT, obs)
        return {
            "type": "step",
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "info": dict(info),
        }

    def close(self) -> None:
        self._env.close()

    def _write(self, slot: int, obs: Observation) -> None:
        expected = self.spec.observation
        if set(obs) != set(expected):
            raise EnvironmentFailure(
                f"the observation holds {sorted(obs)}, the environment's spec declares {sorted(expected)}"
            )
        for name, spec in expected.items():
            array = np.asarray(obs[name])
            if array.shape != tuple(spec.shape) or array.dtype != np.dtype(spec.dtype):
                raise EnvironmentFailure(
                    f"observation {name!r} is {array.dtype} {list(array.shape)}, the environment's spec declares "
                    f"{np.dtype(spec.dtype)} {list(spec.shape)}"
                )
            self._slots[slot][name][...] = array


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


def serve(control: socket.socket, memory_fd: int) -> None:
    """Answers requests until the parent says `close` or goes away, or the environment fails."""
    reader, host, deadlines_s = MessageReader(), None, {}
    try:
        while True:
            request = reader.next()
            if request is None:
                data = control.recv(65536)
                if not data:
                    return
                reader.feed(data)
                continue
            kind = request["type"]
            if kind == "close":
                return
            if kind == "start":
                deadlines_s = request["deadlines_s"]
            # A hang leaves the stack it hangs in in the log, just before the parent's deadline.
            faulthandler.dump_traceback_later(0.9 * deadlines_s[kind], file=2)
            try:
                if kind == "start":
                    host = Host(memory_fd, request)
                    reply = {"type": "started", "spec": spec_to_json(host.spec)}
                else:
                    assert host is not None, f"{kind!r} before 'start'"
                    reply = host.reset(request) if kind == "reset" else host.step(request)
                answer = pack(reply)
            except Exception as error:
                traceback.print_exc()
                message = str(error) if isinstance(error, EnvironmentFailure) else f"{type(error).__name__}: {error}"
                permanent = isinstance(error, PermanentFailure)
                control.sendall(pack({"type": "failed", "message": message[:4096], "permanent": permanent}))
                return
            finally:
                faulthandler.cancel_dump_traceback_later()
            control.sendall(answer)
    finally:
        if host is not None:
            host.close()


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
