"""A Minecraft process that listens for its player, or one that runs already.

The instances that MineRL's and MineStudio's clients would start themselves are not used: they leave the process group,
share one folder for worlds and logs, choose ports that two hosts may choose at once, and start further processes to
watch over the first. What the clients have to know of an instance is little: the attributes of `Instance`.

Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minestudio_jax.envs.display import Display, open_display
from minestudio_jax.envs.env import EnvironmentFailure, MisconfiguredEnvironment
from minestudio_jax.envs.owned_process import OwnedProcess
from minestudio_jax.envs.ports import ClaimedPort
from minestudio_jax.envs.work_folder import WorkFolder

JAVA_COMMAND = ("{java}", "-Xmx{heap_mib}m", "-jar", "{jar}", "--envPort={port}")

_PORT_LINE = "***** Start MalmoEnvServer on port "
_READY_LINE = "CLIENT enter state: DORMANT"
_TAIL_LINES = 40
_END_WAIT_S = 0.5  # from a broken connection to the end of the process behind it

_HINTS = (
    ("UnsupportedClassVersionError", "this engine needs Java 8: name its executable in the option java"),
    ("Unable to access jarfile", "the engine's jar cannot be read"),
    ("Could not reserve enough space", "the host has less free memory than the option heap_mib asks for"),
    ("OutOfMemoryError", "Java's heap is full: raise the option heap_mib"),
    ("GLX13 config", "the display has no OpenGL: install libgl1-mesa-dri, or look at the option display"),
    ("opengl.Display.<clinit>", "there is no usable X display: look at the option display"),
    ("DISPLAY environment variable is missing", "there is no X display: look at the option display"),
    ("Failed to open display", "the X display cannot be opened: look at the option display"),
    ("Address already in use", "somebody else listens on its port"),
)


@dataclass(frozen=True)
class Launch:
    """How Minecraft is started: options of the factories, by these names.

    Attributes:
      launch_command: instead of JAVA_COMMAND; {java}, {jar}, {heap_mib}, {port} and {folder} in it are replaced.
      java: executable of Java 8.
      heap_mib: Java's -Xmx, MiB; the process takes about half a GiB more.
      jar: of the engine; empty: the client's own.
      work_dir: where each instance gets its folder, a hundred MiB or so; empty: the system's temporary directory.
      template_dir: what that folder begins with, such as an options.txt; empty: the client's own, if it has one.
      display: one of `display.KINDS`.
      gpu: device that VirtualGL draws on.
      start_timeout_s: seconds until it must listen.
    """

    launch_command: Sequence[str] = JAVA_COMMAND
    java: str = "java"
    heap_mib: int = 4096
    jar: str = ""
    work_dir: str = ""
    template_dir: str = ""
    display: str = "auto"
    gpu: str = "egl"
    start_timeout_s: float = 280.0

    def __post_init__(self) -> None:
        """Raises MisconfiguredEnvironment if a field is of the wrong kind."""
        words = self.launch_command
        if isinstance(words, str) or not words or not all(isinstance(word, str) for word in words):
            raise MisconfiguredEnvironment(
                f"env.options: launch_command={words!r} must be a list of words, the program's name first"
            )
        if isinstance(self.heap_mib, bool) or not isinstance(self.heap_mib, int) or self.heap_mib < 1:
            raise MisconfiguredEnvironment(f"env.options: heap_mib={self.heap_mib!r} must be a whole number of MiB")
        seconds = self.start_timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise MisconfiguredEnvironment(f"env.options: start_timeout_s={seconds!r} must be a number above 0")


class Instance:
    """An engine that runs already, under whoever's care. Also what a client of MineRL's kind needs of an instance.

    Args:
      host, port: where it listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.client_socket: Any = None
        self.had_to_clean = False
        self.running = True
        self.instance_id = 0

    def kill(self) -> None:
        """The client's word for `close`."""
        self.close()

    def end(self) -> str:
        """How its process ended, as far as that is known; empty if it still runs."""
        return ""

    def condition(self) -> str:
        """What is known of the process, a clause for an error's message."""
        return f"the engine is one that was running already, at {self.host}:{self.port}"

    def asked(self, when: str, request: Callable[[], Any], limit_s: float) -> Any:
        """What the client answers to a request.

        Args:
          when: "reset" or "step".
          request: a tuple that it returns ends in the client's info.
          limit_s: seconds that the client is to wait.
        Raises:
          EnvironmentFailure: the client raised an error, or its info tells one: what it observed is then made up.
        """
        begin = time.monotonic()
        try:
            answer = request()
        except Exception as error:
            raise self._failure(when, error, time.monotonic() - begin, limit_s) from error
        told = answer[-1].get("error") if isinstance(answer, tuple) else None
        if told:
            raise self._failure(when, told, time.monotonic() - begin, limit_s)
        return answer

    def _failure(self, when: str, error: object, waited_s: float, limit_s: float) -> EnvironmentFailure:
        what = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
        failure = EnvironmentFailure(
            f"the engine broke in a {when} after {waited_s:.1f} s ({what}); {self.condition()}"
        )
        if self.end():
            failure.cause = "death"
        elif waited_s >= 0.9 * limit_s:
            failure.cause = "hang"
        elif not isinstance(error, BaseException):
            failure.cause = "error_info"
        return failure

    def close(self) -> None:
        """Harmless if called twice."""
        self.running = False


class Engine(Instance):
    """An engine of its own, which listens when the constructor returns.

    Its process stays in this one's group, is killed by the kernel if this one is, and by `close` with all that it has
    started. What it prints goes to this process's standard output, the instance's log.

    Args:
      launch: how.
      index: of the environment; no two that run at the same time on a host need different ones.
      find_jar: called if the command needs the engine's jar and `launch` names none.
    Raises:
      MisconfiguredEnvironment: a program or a display is missing.
      EnvironmentFailure: it ended, or did not listen in time.
    """

    def __init__(self, launch: Launch, index: int, find_jar: Callable[[], str]) -> None:
        self._launch = launch
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._told = threading.Event()
        self._told_port: int | None = None
        self._is_ready = False
        with contextlib.ExitStack() as ours:  # closed again if it does not come to an engine that listens
            program = self._program(find_jar)
            display = open_display(launch.display, launch.gpu)
            ours.callback(display.close)
            folder = WorkFolder(launch.work_dir, index, launch.template_dir)
            ours.callback(folder.close)
            claim = ClaimedPort(index)
            ours.callback(claim.close)
            super().__init__("127.0.0.1", claim.number)
            self._process = self._start(program, display, folder.path)
            self._listener = threading.Thread(target=self._listen, name="Minecraft's output", daemon=True)
            ours.callback(self._end)
            self._listener.start()
            self._wait_until_it_listens()
            self._ours = ours.pop_all()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def end(self) -> str:
        return self._process.end(_END_WAIT_S)

    def condition(self) -> str:
        return f"Minecraft (process {self.pid}) {self.end() or 'still runs'}{self._hint()}"

    def close(self) -> None:
        super().close()
        self._ours.close()

    def _program(self, find_jar: Callable[[], str]) -> Callable[[int, str], list[str]]:
        launch = self._launch
        words = list(launch.launch_command)
        needs_jar = any("{jar}" in word for word in words)
        jar = (launch.jar or find_jar()) if needs_jar else ""
        if needs_jar and not os.path.isfile(jar):
            raise MisconfiguredEnvironment(
                f"there is no engine at {jar}: build or download it, or name it as option jar"
            )

        values = {"java": launch.java, "jar": os.path.abspath(jar), "heap_mib": launch.heap_mib}
        name = words[0].format(port="", folder="", **values)
        found = shutil.which(name)
        if found is None:
            of_java = "apt-get install openjdk-8-jdk, or name Java 8's executable in the option java"
            remedy = of_java if name == launch.java else "correct the option launch_command"
            raise MisconfiguredEnvironment(f"there is no program {name!r}: {remedy}")
        absolute = os.path.abspath(found)  # it is started in another folder
        return lambda port, folder: [absolute, *(word.format(port=port, folder=folder, **values) for word in words[1:])]

    def _start(self, program: Callable[[int, str], list[str]], display: Display, folder: str) -> OwnedProcess:
        command = [*display.prefix, *program(self.port, folder)]
        print(f"Minecraft is started in {folder} on port {self.port}, display {display.kind}: {' '.join(command)}")
        try:
            return OwnedProcess(command, {**os.environ, **display.variables}, folder, pipe=True)
        except OSError as error:
            raise EnvironmentFailure(f"Minecraft cannot be started: {error}") from error

    def _listen(self) -> None:
        """Passes on what the process prints, to its end: a full pipe would stop it."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                self._tail.append(line)
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
                if _PORT_LINE in line:
                    number = line.partition(_PORT_LINE)[2].strip()
                    self._told_port = int(number) if number.isdecimal() else None
                elif _READY_LINE in line and self._told_port is not None:
                    self._is_ready = True
                    self._told.set()
        self._told.set()

    def _end(self) -> None:
        """Kills the process, and lets its last words out."""
        self._process.close()
        if self._listener.is_alive():
            self._listener.join(_END_WAIT_S)

    def _wait_until_it_listens(self) -> None:
        limit_s = self._launch.start_timeout_s
        if not self._told.wait(limit_s):
            raise EnvironmentFailure(f"Minecraft did not listen within start_timeout_s={limit_s:g}; {self.condition()}")
        if not self._is_ready:
            tail = "\n".join(self._tail)
            raise EnvironmentFailure(f"Minecraft did not start; {self.condition()}; it said last:\n{tail}")
        assert self._told_port is not None
        self.port = self._told_port

    def _hint(self) -> str:
        said = "\n".join(self._tail)
        return "".join(f"; {hint}" for sign, hint in _HINTS if sign in said)
