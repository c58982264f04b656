"""Serves the embedded world as if it were Minecraft: python -m minestudio_jax.serve_voxel --port=9000

Scripts for MineRL 1.0 or MineStudio play it through Malmo's protocol, without Java:
`InstanceManager.add_existing_instance(9000)`, then `gym.make(...)` as ever. One client plays at a time; a mission's
size, seed, biome, inventory and time limit count, and so do commands in the chat.

With --fault something goes wrong after --fault_after steps, to try how a program takes it: the server stalls, closes
the connection in place of an answer (error), dies in the middle of a frame (die_mid_frame), sends a frame of a wrong
length (garbage); or every mission begins --fault_s late (slow_start).

Exit code 0: told to stop, by a signal or by a client; 2: wrong arguments, or the port is taken.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from minestudio_jax.envs.voxel.malmo_server import FAULTS, FRAME_SIZE, Fault, Game, MalmoServer
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

_STOPPED, _USAGE = 0, 2


def main(argv: Sequence[str]) -> int:
    configure_cpu_compiler()
    values = flags.FlagValues()
    flags.DEFINE_integer("port", 9000, "Port to listen on; 0: any that is free.", 0, 65535, flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.", flag_values=values)
    flags.DEFINE_string("task", "chop_tree", "Task: a name or a .yaml file; its reward is sent.", flag_values=values)
    flags.DEFINE_string("preset", "vanilla", "Constants of the world, vanilla or toy.", flag_values=values)
    flags.DEFINE_integer("height", FRAME_SIZE[0], "Of frames, if a mission asks for none.", 1, flag_values=values)
    flags.DEFINE_integer("width", FRAME_SIZE[1], "Of frames, if a mission asks for none.", 1, flag_values=values)
    flags.DEFINE_enum("fault", "none", FAULTS, "What goes wrong.", flag_values=values)
    flags.DEFINE_integer("fault_after", 100, "Steps that go well before.", 0, flag_values=values)
    flags.DEFINE_float("fault_s", 30.0, "Seconds by which slow_start is late.", 0.0, flag_values=values)
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values)
    try:
        rest = values(list(argv))
        if values["help"].value:
            print(f"{__doc__}\n{values.get_help()}")
            return _STOPPED
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}")
        given: dict[str, Any] = {name: values[name].value for name in values}
        from minestudio_jax.envs.voxel.malmo_game import VoxelGame

        game = VoxelGame(given["task"], given["preset"])
        fault = Fault(given["fault"], given["fault_after"], given["fault_s"])
        return run(game, given["port"], given["host"], (given["height"], given["width"]), fault)
    except (flags.Error, ValueError) as error:
        print(f"serve_voxel: error: {' '.join(str(error).split())}", file=sys.stderr)
        return _USAGE


def run(game: Game, port: int, host: str, frame_size: tuple[int, int], fault: Fault) -> int:
    """Serves a game until SIGTERM, SIGINT or a client ends it. Prints what Minecraft's launchers wait for.

    Returns:
      Exit code.
    Raises:
      ValueError: the port is taken.
    """
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    try:
        server = MalmoServer(game, port, host, frame_size, fault)
    except OSError as error:
        raise ValueError(
            f"--port={port}: cannot listen on {host}: {error.strerror}; give another one, or 0 for any that is free"
        ) from error
    with server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        print(f"***** Start MalmoEnvServer on port {server.port}")
        print("CLIENT enter state: DORMANT\nSERVER enter state: DORMANT", flush=True)
        server.serve()
    sys.stdout.flush()
    if threading.active_count() > 1:  # a client's thread still computes, and must not do so in a dying interpreter
        os._exit(_STOPPED)
    return _STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv))
