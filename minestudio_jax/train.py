"""Trains a policy: python -m minestudio_jax.train --flagfile=configs/quickstart.flags

The same command again continues where it stopped; --run.restart=true starts over. --dry_run prints the resolved
settings and what follows from them.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run.command_line import run_program

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the resolved settings and the derived figures, then exit.")


def main(config: Config) -> int:
    # JAX and Ray take seconds to import: a wrong command line must not wait for them.
    if _DRY_RUN.value:
        from minestudio_jax.run.dry_run import report

        try:
            print(report(config))
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        return 0
    from minestudio_jax.run.ray_cluster import check_reachable, expect_token
    from minestudio_jax.run.run_directory import refuse_unusable

    expect_token(config)
    if config.trainer.launcher == "none":  # with several hosts another one may be about to make both
        refuse_unusable(Path(config.run.dir))
        check_reachable(config.run.ray_address)
    if config.trainer.launcher == "ray":
        from minestudio_jax.run.ray_launcher import launch

        return launch(config)
    from minestudio_jax.run.training_run import train

    return train(config)


if __name__ == "__main__":
    run_program("train", main)
