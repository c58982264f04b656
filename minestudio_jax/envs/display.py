"""Where Minecraft draws: it needs an X display with OpenGL, also on a machine without a screen.

Simulator side: the standard library only, Python 3.8 syntax. Functions return data and sentences and print nothing.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from minestudio_jax.envs.env import EnvironmentFailure, MisconfiguredEnvironment
from minestudio_jax.envs.owned_process import OwnedProcess

KINDS = ("auto", "inherit", "xvfb", "minerl_headless", "virtualgl")

_CONNECT_DEADLINE_S = 3.0
_XVFB_DEADLINE_S = 30.0
_GLXINFO_DEADLINE_S = 30.0
_END_WAIT_S = 1.0  # from the end of its pipe to that of a process
_SCREEN = "1024x768x24"
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software rasterizer")


@dataclass(frozen=True)
class DisplayFinding:
    """Whether one kind of display can be had here.

    Attributes:
      kind: "inherit", "xvfb" or "virtualgl".
      usable: it can.
      sentence: what was found; if it is not usable, what to do.
    """

    kind: str
    usable: bool
    sentence: str


@dataclass(frozen=True)
class GlRenderer:
    """Who draws.

    Attributes:
      name: OpenGL's renderer string; empty if it cannot be known.
      software: it draws on the CPU; None if that is not known.
      sentence: what that means, or why it is not known.
    """

    name: str
    software: bool | None
    sentence: str


class Display:
    """A place to draw, for one Minecraft process.

    Args:
      kind: one of KINDS, but "auto".
      variables: environment variables of the process besides its others.
      prefix: in front of its command.
      server: an X server of its own.
    """

    def __init__(
        self,
        kind: str,
        variables: Mapping[str, str],
        prefix: tuple[str, ...] = (),
        server: OwnedProcess | None = None,
    ) -> None:
        self.kind, self.variables, self.prefix = kind, dict(variables), prefix
        self._server = server

    def close(self) -> None:
        """Ends the X server, if it has one; harmless if called twice."""
        if self._server is not None:
            self._server.close(grace_s=2.0)  # so that it can remove its lock from /tmp
            self._server = None


def find_displays(variables: Mapping[str, str] | None = None) -> list[DisplayFinding]:
    """What there is, in the order in which "auto" looks if no environment variable asks for something else.

    Args:
      variables: environment variables; None: this process's.
    """
    variables = os.environ if variables is None else variables
    path = variables.get("PATH")
    display, has_xvfb = variables.get("DISPLAY", ""), shutil.which("Xvfb", path=path) is not None
    error = _connect_error(display)
    inherit = DisplayFinding(
        "inherit",
        not error,
        f"DISPLAY cannot be used: {error}." if error else f"DISPLAY={display} is an X display.",
    )
    xvfb = DisplayFinding(
        "xvfb",
        has_xvfb,
        "Xvfb is installed: each instance starts one of its own; it draws on the CPU."
        if has_xvfb
        else "Xvfb is not installed: apt-get install xvfb libgl1-mesa-dri.",
    )
    vglrun = shutil.which("vglrun", path=path) is not None
    if not vglrun:
        words = "VirtualGL's vglrun is not installed: it lets a GPU draw on a machine without a screen."
    elif inherit.usable or has_xvfb:
        words = "VirtualGL is installed: with MINESTUDIO_GPU_RENDER=1 or display=virtualgl a GPU draws."
    else:
        words = "VirtualGL is installed, but it needs a 2D X display besides: apt-get install xvfb."
    virtualgl = DisplayFinding("virtualgl", vglrun and (inherit.usable or has_xvfb), words)
    return [inherit, xvfb, virtualgl]


def choose_display(kind: str = "auto", variables: Mapping[str, str] | None = None) -> str:
    """The kind of display to use.

    Args:
      kind: one of KINDS. "auto" is VirtualGL if MINESTUDIO_GPU_RENDER=1, Xvfb if MINERL_HEADLESS=1, and otherwise a
        DISPLAY that answers, or Xvfb. "minerl_headless" is only taken if it is asked for: it leaves the display to a
        launch command that knows MINERL_HEADLESS.
      variables: environment variables; None: this process's.
    Raises:
      MisconfiguredEnvironment: it cannot be had, or is none.
    """
    if kind not in KINDS:
        raise MisconfiguredEnvironment(f"env.options: display={kind!r} is not one of {', '.join(KINDS)}")
    variables = os.environ if variables is None else variables
    findings = {finding.kind: finding for finding in find_displays(variables)}
    if kind == "minerl_headless":
        return kind
    wanted, why = kind, f"env.options: display={kind!r} cannot be had."
    if kind == "auto" and variables.get("MINESTUDIO_GPU_RENDER") == "1":
        wanted, why = "virtualgl", "MINESTUDIO_GPU_RENDER=1 asks for VirtualGL."
    elif kind == "auto" and variables.get("MINERL_HEADLESS", "") not in ("", "0"):
        wanted, why = "xvfb", "MINERL_HEADLESS asks for an X server of its own."
    if wanted != "auto":
        if not findings[wanted].usable:
            raise MisconfiguredEnvironment(f"{why} {findings[wanted].sentence}")
        return wanted
    for choice in ("inherit", "xvfb"):
        if findings[choice].usable:
            return choice
    raise MisconfiguredEnvironment(
        "Minecraft needs an X display, and there is none. " + " ".join(f.sentence for f in findings.values())
    )


def open_display(kind: str = "auto", gpu: str = "egl") -> Display:
    """A display of the kind that `choose_display` chooses, closed by its caller.

    Each instance has an X server of its own: one that several share would have to outlive the one that started it,
    and nobody would be sure to end it.

    Args:
      kind: one of KINDS.
      gpu: device that VirtualGL draws on, "egl" or a path such as "/dev/dri/card0".
    Raises:
      MisconfiguredEnvironment: there is none.
      EnvironmentFailure: the X server does not start.
    """
    kind = choose_display(kind)
    if kind == "minerl_headless":
        return Display(kind, {"MINERL_HEADLESS": "1"})
    if kind == "inherit":
        return Display(kind, {})
    prefix = ("vglrun", "-d", gpu) if kind == "virtualgl" else ()
    if kind == "virtualgl" and not _connect_error(os.environ.get("DISPLAY", "")):
        return Display(kind, {}, prefix)
    number, server = _start_xvfb()
    return Display(kind, {"DISPLAY": f":{number}"}, prefix, server)


def gl_renderer(display: Display) -> GlRenderer:
    """Who draws on a display, as `glxinfo` tells; waits half a minute at most."""
    variables = {**os.environ, **display.variables}
    if shutil.which("glxinfo", path=variables.get("PATH")) is None:
        return GlRenderer("", None, "Who draws is not known: glxinfo is not installed (apt-get install mesa-utils).")
    try:
        told = subprocess.run(
            [*display.prefix, "glxinfo", "-B"],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_GLXINFO_DEADLINE_S,
        ).stdout.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return GlRenderer("", None, f"glxinfo gave no answer in {_GLXINFO_DEADLINE_S:g} s: the display hangs.")
    found = re.search(r"OpenGL renderer string:\s*(.+)", told)
    if found is None:
        tail = " ".join(told.split())[-200:]
        return GlRenderer("", None, f"There is no OpenGL on this display, Minecraft will not start: {tail}")
    name = found.group(1).strip()
    if any(word in name.lower() for word in _SOFTWARE):
        return GlRenderer(
            name, True, f"{name} draws on the CPU: two to three times slower than a GPU; VirtualGL lets a GPU draw."
        )
    return GlRenderer(name, False, f"{name} draws.")


def _start_xvfb() -> tuple[int, OwnedProcess]:
    """An X server on a display number that it chooses itself, so that two cannot want the same."""
    reader, writer = os.pipe()
    try:
        words = f"Xvfb -displayfd {writer} -screen 0 {_SCREEN} +extension GLX +render -noreset -nolisten tcp"
        server = OwnedProcess(words.split(), os.environ, pass_fds=(writer,))
        os.close(writer)
        writer = -1
        told = b""
        while not told.endswith(b"\n"):
            readable, _, _ = select.select([reader], [], [], _XVFB_DEADLINE_S)
            more = os.read(reader, 64) if readable else b""
            if not more:
                why = server.end(_END_WAIT_S) or f"told no display number in {_XVFB_DEADLINE_S:g} s"
                server.close()
                raise EnvironmentFailure(f"Xvfb {why}; the lines above in the log are its own")
            told += more
        return int(told), server
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _connect_error(display: str) -> str:
    """Why there is no X server at `display`; empty if there is one."""
    match = re.fullmatch(r"(?:unix)?([^:/]*):(\d+)(?:\.\d+)?", display)
    if not display:
        return "it is not set"
    if match is None:
        return f"{display!r} is not of the form [host]:number"
    host, number = match.group(1), int(match.group(2))
    places = [("unix", path) for path in (f"/tmp/.X11-unix/X{number}", f"\0/tmp/.X11-unix/X{number}")]
    for family, place in places if not host else [("tcp", host)]:
        probe = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
        with probe:
            probe.settimeout(_CONNECT_DEADLINE_S)
            try:
                probe.connect(place if family == "unix" else (place, 6000 + number))
            except OSError:
                continue
            return ""
    return f"no X server answers at {display}"
