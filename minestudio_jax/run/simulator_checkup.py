"""Whether Minecraft can be started: the interpreter, its packages, the game, Java, the display, ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minestudio_jax.config import MINECRAFT_FACTORIES, EnvConfig, factory_path
from minestudio_jax.envs import display
from minestudio_jax.envs.engine import JAVA_COMMAND, Launch
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.envs.minerl_client import HEAP_MIB, JAR
from minestudio_jax.run.finding import Finding, bad, doubtful, good

_GIB = 2**30
_DEADLINE_S = 60.0
_PROBE = Path(__file__).parents[1] / "envs" / "probe.py"
_DOCS = "docs/minecraft.md has every step"
_NUMPY_BELOW = (1, 24)
_BESIDE_HEAP_MIB = 512  # that the game's process takes besides its heap


@dataclass(frozen=True)
class Simulator:
    """What one of Minecraft's simulators needs.

    Attributes:
      name: of its Python package.
      install: how one gets it.
      packages: that it cannot do without, besides NumPy.
      heap_mib: of the game, unless env.options say something else.
      python_bytes: of the process that talks to the game.
      old_numpy: it needs NumPy below 1.24.
    """

    name: str
    install: str
    packages: tuple[str, ...]
    heap_mib: int
    python_bytes: int
    old_numpy: bool

    def instance_bytes(self, env: EnvConfig) -> int:
        """Memory of one instance: Java's heap, what Java takes besides, and Python."""
        if _runs_already(env):
            return self.python_bytes
        heap_mib = env.options.get("heap_mib", self.heap_mib)
        if not isinstance(heap_mib, int):  # what starts it says what is wrong
            heap_mib = self.heap_mib
        return (heap_mib + _BESIDE_HEAP_MIB) * 2**20 + self.python_bytes


_CLIENT = ("gym", "cv2", "lxml", "jinja2", "xmltodict", "psutil", "Pyro4", "daemoniker")
_MINESTUDIO = "pip install minestudio, then python -m minestudio.simulator.entry -y, which fetches the game"
SIMULATORS: Mapping[str, Simulator] = {
    "minerl": Simulator(
        "minerl",
        "pip install git+https://github.com/minerllabs/minerl@v1.0.2",
        _CLIENT,
        HEAP_MIB["minerl"],
        _GIB // 4,
        True,
    ),
    "minestudio": Simulator(
        "minestudio", _MINESTUDIO, (*_CLIENT, "torch", "gymnasium"), HEAP_MIB["minestudio"], 3 * _GIB // 4, False
    ),
}
_MINESTUDIOS_CLIENT = Simulator("minestudio", _MINESTUDIO, _CLIENT, HEAP_MIB["minestudio"], _GIB // 4, False)


def simulator_of(env: EnvConfig) -> Simulator | None:
    """The simulator behind env.factory, if it is one of Minecraft's."""
    name = next((name for name, path in MINECRAFT_FACTORIES.items() if path == factory_path(env)), "")
    if name == "minerl" and env.options.get("client") == "minestudio":
        return _MINESTUDIOS_CLIENT
    return SIMULATORS.get(name)


def check_simulator(env: EnvConfig, simulator: Simulator) -> Iterator[Finding]:
    """Everything that the simulator needs to start; `env` are the run's settings of environments."""
    interpreter = env.python or sys.executable
    probed = _probe(interpreter, (simulator.name, "numpy", *simulator.packages))
    if isinstance(probed, Finding):
        yield probed
    else:
        yield from _check_packages(interpreter, simulator, probed)
    if _runs_already(env):
        yield good("game", f"it is not started: env.options names port {env.options['port']}, where one listens")
        return
    folder = "" if isinstance(probed, Finding) else (probed["packages"][simulator.name] or {}).get("folder", "")
    command = " ".join(map(str, env.options.get("launch_command", JAVA_COMMAND)))
    if "{jar}" in command:
        yield _game(simulator, folder, env.options.get("jar", ""))
    if "{java}" in command:
        yield _java(env.options.get("java", Launch.java))
    else:
        yield good("game", f"env.options: launch_command starts it: {command}")
    yield _display(env.options.get("display", Launch.display), env.options.get("gpu", Launch.gpu))


def _runs_already(env: EnvConfig) -> bool:
    """The game is started by somebody else."""
    return bool(env.options.get("port"))


def _probe(interpreter: str, names: tuple[str, ...]) -> dict[str, Any] | Finding:
    try:
        result = subprocess.run(
            [interpreter, str(_PROBE), *names],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DEADLINE_S,
            check=True,
        )
        probed: dict[str, Any] = json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        return bad(
            "interpreter",
            f"env.python={interpreter!r} does not run: {reason.strip().splitlines()[-1] if reason.strip() else error}",
            "name a Python from 3.8 on that has the simulator",
        )
    return probed


def _check_packages(interpreter: str, simulator: Simulator, probed: Mapping[str, Any]) -> Iterator[Finding]:
    version = tuple(probed["version"])
    words = ".".join(map(str, version))
    if version < (3, 8):
        yield bad("interpreter", f"{interpreter} is Python {words}", "it must be 3.8 or newer")
    else:
        yield good("interpreter", f"{interpreter}, Python {words}")
    packages: Mapping[str, Any] = probed["packages"]
    if packages[simulator.name] is None:
        yield bad("simulator", f"{interpreter} has no package {simulator.name!r}", f"{simulator.install}; {_DOCS}")
    elif simulator.name == "minerl" and packages["minerl"]["version"].startswith("0."):
        yield bad(
            "simulator",
            f"minerl {packages['minerl']['version']} is Minecraft 1.11, with other observations and actions",
            f"{simulator.install} (PyPI's newest is the old one); {_DOCS}",
        )
    else:
        yield good("simulator", f"{simulator.name} {packages[simulator.name]['version']}")
    numpy = packages["numpy"]
    if numpy is None:
        yield bad(
            "NumPy",
            f"{interpreter} has none",
            "pip install 'numpy<1.24'" if simulator.old_numpy else "pip install numpy",
        )
    elif simulator.old_numpy and _numbers(numpy["version"]) >= _NUMPY_BELOW:
        yield bad("NumPy", f"it is {numpy['version']}, MineRL needs one below 1.24", "pip install 'numpy<1.24' there")
    else:
        yield good("NumPy", numpy["version"])
    missing = [name for name in simulator.packages if packages[name] is None]
    if missing:
        yield bad("packages", f"{interpreter} lacks {', '.join(missing)}", f"{simulator.install}; {_DOCS}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _game(simulator: Simulator, folder: str, given: str) -> Finding:
    """The Java program itself; `given` is where the settings say it is."""
    if given:
        jar, remedy = Path(given), "correct env.options: jar"
    elif simulator.name == "minerl":
        if not folder:
            return bad("game", "where it lies is known once the package minerl is there", simulator.install)
        jar = Path(folder) / "MCP-Reborn" / Path(*JAR)
        remedy = f"MineRL builds it while it is installed, with JDK 8: {simulator.install}; {_DOCS}"
    else:
        home = os.environ.get("MINESTUDIO_DIR") or os.path.join(tempfile.gettempdir(), "MineStudio")
        jar = Path(home) / "engine" / Path(*JAR)
        remedy = "python -m minestudio.simulator.entry -y fetches it; set MINESTUDIO_DIR to a folder that lasts"
    if not jar.is_file():
        return bad("game", f"there is no {jar}", remedy)
    return good("game", str(jar))


def _java(name: str) -> Finding:
    program = shutil.which(name)
    remedy = (
        "apt install openjdk-8-jdk, or conda install -c conda-forge openjdk=8; put it first in PATH, or name its "
        "executable in env.options: java"
    )
    if program is None:
        return bad("Java", f"there is no program {name!r}", remedy)
    try:
        told = subprocess.run(
            [program, "-version"], capture_output=True, text=True, errors="replace", timeout=_DEADLINE_S
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        return bad("Java", f"{program} does not run: {error}", remedy)
    found = re.search(r'version "([^"]+)"', told)
    version = found.group(1) if found else "of unknown version"
    if not version.startswith("1.8"):
        return bad("Java", f"{os.path.realpath(program)} is {version}, Minecraft 1.16.5 needs 8 here", remedy)
    return good("Java", f"{os.path.realpath(program)}, {version}")


def _display(kind: str, gpu: str) -> Finding:
    if kind == "minerl_headless":
        return good("display", "env.options: display=minerl_headless leaves it to the launch_command")
    try:
        opened = display.open_display(kind, gpu)
    except EnvironmentFailure as error:
        return bad("display", str(error), "apt install xvfb libgl1-mesa-dri mesa-utils")
    try:
        renderer = display.gl_renderer(opened)
    finally:
        opened.close()
    sentence = f"{opened.kind}: {renderer.sentence}"
    if renderer.software is None:
        return doubtful("display", sentence, "apt install mesa-utils libgl1-mesa-dri, and look again")
    if renderer.software:
        return doubtful("display", sentence, "with a GPU install VirtualGL and set env.options: display to virtualgl")
    return good("display", sentence)
