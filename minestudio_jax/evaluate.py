"""Plays episodes with a trained policy: python -m minestudio_jax.evaluate --run.dir=runs/quickstart --episodes=20

Settings are those the run was last started with; give a flag to change one, for example another task or seed.
Prints one line an episode and, as the last line, a JSON object with the means.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run.command_line import EXIT_FAILURE, run_program

_EPISODES = flags.DEFINE_integer("episodes", 20, "Episodes to play.", lower_bound=1)
_VERSION = flags.DEFINE_integer("version", 0, "Policy version to play; 0: the newest published one.", lower_bound=0)
_BEST = flags.DEFINE_bool("best", False, "Play the version with the best mean return of 20 episodes so far.")
_GREEDY = flags.DEFINE_bool("greedy", False, "Take the most probable action instead of sampling.")
_RECORD = flags.DEFINE_string("record", "", "Folder to which the episodes are added as demonstrations. Empty: none.")


def main(config: Config) -> int:
    from minestudio_jax.envs.env import EnvironmentFailure
    from minestudio_jax.run.evaluation import evaluate

    given = {name for name in flags.FLAGS if flags.FLAGS[name].present and "." in name}
    try:
        version = None if _BEST.value else _VERSION.value
        record = Path(_RECORD.value).expanduser() if _RECORD.value else None
        evaluate(config, given, _EPISODES.value, version, _GREEDY.value, sys.stdout, record)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    except EnvironmentFailure as error:
        print(f"evaluate: failed: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


if __name__ == "__main__":
    run_program("evaluate", main)
