"""Looks for what would keep a run from starting: python -m minestudio_jax.doctor --flagfile=configs/quickstart.flags

Takes the flags of `train`. Checks the machine, the interpreter and packages of the environments, and for Minecraft also
the game, Java and the display; then starts one environment, plays 50 steps and saves a frame. Says in plain words what
it finds and what to do about it. Exit code 0 if a run can start, 1 if not.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from minestudio_jax.config import Config
from minestudio_jax.run.command_line import EXIT_FAILURE, run_program

_FRAME = flags.DEFINE_string("frame", "doctor.png", "File that the trial's last frame is saved as.")
_TRIAL = flags.DEFINE_bool("trial", True, "Start one environment; --notrial only looks.")


def main(config: Config) -> int:
    from minestudio_jax.run.checkup import examine

    healthy = examine(config, Path(_FRAME.value).expanduser() if _TRIAL.value else None)
    return 0 if healthy else EXIT_FAILURE


if __name__ == "__main__":
    run_program("doctor", main, read_model=False)  # a file that is missing is one finding among others
