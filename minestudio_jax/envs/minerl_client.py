"""The Python package that talks to Minecraft's engine: MineRL's client, or MineStudio's fork of it.

Simulator side: the standard library and that client only, Python 3.8 syntax.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any, NamedTuple

from minestudio_jax.envs.engine import Launch
from minestudio_jax.envs.env import MisconfiguredEnvironment

HEAP_MIB = {"minerl": Launch.heap_mib, "minestudio": 2048}  # of the engine, as each starts its own
JAR = ("build", "libs", "mcprec-6.13.jar")  # below the engine's folder

_ROOTS = {"minerl": "minerl", "minestudio": "minestudio.simulator.minerl"}
_INSTALL = {
    "minerl": "pip install git+https://github.com/minerllabs/minerl@v1.0.2 (numpy<1.24, gym<=0.23.1, JDK 8)",
    "minestudio": "pip install minestudio (Python 3.10 or newer, JDK 8)",
}


class Client(NamedTuple):
    """What is used of a client. Its modules lie in the same places in MineRL and in MineStudio's fork.

    Attributes:
      environment: class of its environments of one player.
      survival: class of specifications, to be derived from.
      handlers: module of the parts that a specification consists of.
      handler: base class of such parts.
      spaces: module of Gym's spaces.
      talk, packets: modules that hold its time limits.
      folder: of the engine.
      runtime: folder of Minecraft's options, or "".
    """

    environment: Any
    survival: Any
    handlers: Any
    handler: Any
    spaces: Any
    talk: Any
    packets: Any
    folder: str
    runtime: str

    @property
    def jar(self) -> str:
        return os.path.join(self.folder, *JAR)


def be_patient(talk: Any, packets: Any, timeout_s: float) -> None:
    """Sets how long a client waits for the engine. It tries once: who built the environment begins anew.

    Args:
      talk, packets: its modules, see Client.
      timeout_s: for the next reset.
    """
    talk.SOCKTIME = timeout_s
    talk.MAX_WAIT = int(timeout_s)  # seconds, while the engine is busy
    packets.retry_count = 1
    # MineStudio's queue of those who reset, in a database on disk, in which the dead keep their places for five
    # minutes: env.max_concurrent_starts is for that. A negative limit is none.
    talk.MAX_RESETTING_ENV_COUNT = -1


def find_client(name: str) -> Client:
    """The package that talks to the engine, imported here and nowhere else.

    Raises:
      MisconfiguredEnvironment: there is none of that name, or it, or what it needs, is not installed.
    """
    if name not in _ROOTS:
        raise MisconfiguredEnvironment(f"env.options: client={name!r} is not one of {', '.join(_ROOTS)}")
    root = _ROOTS[name]
    try:
        if name == "minestudio":
            _import_bare("minestudio.simulator")
        found = [
            importlib.import_module(f"{root}.{module}")
            for module in (
                "env._singleagent", "herobraine.env_specs.human_survival_specs", "herobraine.hero.handlers",
                "herobraine.hero.handlers.translation", "herobraine.hero.spaces", "env._multiagent", "env.comms",
                "env.malmo",
            )
        ]  # fmt: skip
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        remedy = _INSTALL[name] if missing in (name, "") else f"pip install what {name} needs, such as {missing}"
        raise MisconfiguredEnvironment(
            f"env.python is {sys.executable}, which has no package {missing!r}: there, {remedy}; or name another "
            "interpreter in env.python"
        ) from error
    single, survival, handlers, translation, spaces, talk, packets, malmo = found
    manager = malmo.InstanceManager
    runtime = getattr(manager, "RUNTIME_DIR", "")
    return Client(
        single._SingleAgentEnv, survival.HumanSurvival, handlers, translation.TranslationHandler, spaces, talk, packets,
        manager.MINECRAFT_DIR, runtime if os.path.isdir(runtime) else "",
    )  # fmt: skip


def _import_bare(package: str) -> None:
    """Makes a package's modules importable without what it imports itself.

    MineStudio's `simulator` imports PyTorch and a GUI, in every instance, for a class that is not used here.
    """
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            parent, _, name = package.rpartition(".")
            sys.modules[package] = importlib.util.module_from_spec(spec)
            setattr(sys.modules[parent], name, sys.modules[package])
