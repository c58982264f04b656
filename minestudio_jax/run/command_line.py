"""From a command line to checked settings, and from a wrong one to a single clear line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags

from minestudio_jax import config_flags
from minestudio_jax.config import Config, ConfigError
from minestudio_jax.config_checks import validate
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def parse(argv: Sequence[str], read_model: bool = True) -> Config:
    """Parses flags and flag files into validated settings with the run directory filled in.

    Args:
      argv: the command line.
      read_model: the network's sizes come from policy.vpt_model, where it is set; otherwise that file is not looked at.
    Raises:
      ConfigError: anything about them is wrong.
    """
    if not flags.FLAGS.is_parsed() and "run.dir" not in flags.FLAGS:
        config_flags.define_flags()
        flags.adopt_module_key_flags(config_flags)
    app.define_help_flags()
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise ConfigError(str(error).replace("\n", " ")) from None
    except OSError as error:
        raise ConfigError(f"cannot read the flag file: {error}") from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}: settings are given as --section.key=value")
    config = config_flags.from_flags()
    validate(config)
    if config.policy.vpt_model and read_model:
        from minestudio_jax.policies.make_policy import with_sizes_from_file  # slow to import

        config = with_sizes_from_file(config)
    run_dir = Path(config.run.dir or config_flags.default_run_dir(argv)).expanduser().absolute()
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(run_dir)))


def run_program(name: str, main: Callable[[Config], int], read_model: bool = True) -> NoReturn:
    """Runs `main` on the settings of the command line and exits with its code.

    A wrong setting, or an environment or policy that does not fit, is one line on stderr and exit code 2.
    """
    configure_cpu_compiler()
    try:
        code = main(parse(sys.argv, read_model))
    except ConfigError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        code = EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.exit(code)
