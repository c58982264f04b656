"""Watches and steers a living run: python -m minestudio_jax.control --run.dir=runs/quickstart

    --status                   (the default) says how it is doing
    --num_rollout_workers=4    has workers added, or the youngest drained
    --stop                     has it write a checkpoint and end, as SIGTERM does

Works from every machine that sees the run directory. Exit code 0: done; 1: no living run, or it did not answer in time;
2: wrong arguments, or the run refused.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from minestudio_jax.config import ConfigError
from minestudio_jax.run import control_files
from minestudio_jax.run.run_directory import read_config

_DONE, _NO_ANSWER, _USAGE = 0, 1, 2
_POLL_S = 0.1


class _NoLivingRun(Exception):
    """Nobody answers; the message says when somebody last wrote."""


def main(argv: Sequence[str]) -> int:
    try:
        run_dir, command, deadline_s = _parse(argv)
    except ConfigError as error:
        print(f"control: error: {error}", file=sys.stderr)
        return _USAGE
    deadline = time.monotonic() + deadline_s
    try:
        if not command:
            print(_described(run_dir, _living_status(run_dir, deadline)))
            return _DONE
        answer = _answer(run_dir, command, deadline)
    except _NoLivingRun as error:
        print(f"control: {error}", file=sys.stderr)
        return _NO_ANSWER
    if not answer["done"]:
        print(f"control: error: {answer['message']}", file=sys.stderr)
        return _USAGE
    print(answer["message"])
    return _DONE


def _parse(argv: Sequence[str]) -> tuple[Path, dict[str, Any], float]:
    """Run directory, command (empty: only look) and seconds to wait.

    Raises:
      ConfigError: anything about the arguments is wrong.
    """
    values = flags.FlagValues()  # of its own: this program has none of a run's settings
    flags.DEFINE_string("run.dir", "", "Directory of the run.", flag_values=values)
    flags.DEFINE_bool("status", False, "Say how the run is doing.", flag_values=values)
    flags.DEFINE_bool("stop", False, "Have the run write a checkpoint and end.", flag_values=values)
    flags.DEFINE_integer(
        "num_rollout_workers", None, "Rollout workers that there shall be.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float("deadline_s", 30.0, "Seconds to wait for the answer.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ConfigError(str(error).replace("\n", " ")) from None
    if values["help"].value:
        print(f"{__doc__}\n{values.get_help()}")
        sys.exit(0)
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}")
    number: int | None = values["num_rollout_workers"].value
    stop, status = bool(values["stop"].value), bool(values["status"].value)
    if (number is not None) + stop + status > 1:
        raise ConfigError("--status, --stop and --num_rollout_workers exclude each other: give one of them")
    if not values["run.dir"].value:
        raise ConfigError("--run.dir is missing: name the directory of a run")
    run_dir = Path(values["run.dir"].value).expanduser().absolute()
    config = read_config(run_dir)
    if number is not None and config.rollout.mode != "ray":
        raise ConfigError(
            f"--num_rollout_workers={number}: the run has rollout.mode={config.rollout.mode!r}, which has no rollout "
            "workers"
        )
    command: dict[str, Any] = {"stop": True} if stop else {}
    if number is not None:
        command["num_rollout_workers"] = number
    return run_dir, command, float(values["deadline_s"].value or 0.0)


def _statuses(run_dir: Path, deadline: float) -> Iterator[dict[str, Any]]:
    """Everything that the run writes from now on.

    Raises:
      _NoLivingRun: it is dead, or nothing comes until `deadline`.
    """
    seen = control_files.read_status(run_dir)
    while True:
        status = control_files.read_status(run_dir)
        if status and (not seen or (status["pid"], status["beat"]) != (seen["pid"], seen["beat"])):
            yield status
            seen = status
        if status and control_files.is_known_dead(status):
            raise _NoLivingRun(f"no living run in {run_dir}: {_last_written(status)}, state {status['state']!r}")
        if time.monotonic() > deadline:
            if not status:
                raise _NoLivingRun(f"no living run in {run_dir}: it has never written its status")
            raise _NoLivingRun(f"the run in {run_dir} did not answer within --deadline_s: {_last_written(status)}")
        time.sleep(_POLL_S)


def _living_status(run_dir: Path, deadline: float) -> dict[str, Any]:
    """The next status, which shows that the run lives."""
    return next(_statuses(run_dir, deadline))


def _answer(run_dir: Path, command: dict[str, Any], deadline: float) -> dict[str, Any]:
    """What the run says to a command."""
    statuses = _statuses(run_dir, deadline)
    next(statuses)  # nobody shall find the command of a time when no run lived
    name = control_files.give_command(run_dir, command, deadline)
    if name is None:
        raise _NoLivingRun(f"another command waits in {run_dir} and was not taken within --deadline_s")
    try:
        for status in statuses:
            if name in status["answers"]:
                return status["answers"][name]
    finally:
        control_files.take_back(run_dir, name)
    raise AssertionError("statuses end with an exception")


def _last_written(status: dict[str, Any]) -> str:
    ago = time.time() - status["time"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["time"]))
    return f"the last status is of {when}, {max(ago, 0):.0f} s ago, by process {status['pid']} on {status['host']}"


def _described(run_dir: Path, status: dict[str, Any]) -> str:
    """A status for human eyes."""
    lines = [f"{run_dir}: {status['state']}, process {status['pid']} on {status['host']}"]
    progress, rollout = status["progress"], status["rollout"]
    if progress:
        lines.append(
            f"iteration {progress['iteration']:.0f}, {progress['env_steps']:,.0f} env steps "
            f"({progress['speed/env_steps_per_s']:.0f}/s), policy version {progress['policy_version']:.0f}"
        )
    if rollout:
        replay = rollout["replay"]
        lines.append(
            f"replay buffer: {replay['held']} fragments held ({replay['held_bytes'] / 1e6:,.1f} MB), "
            f"{rollout['replay_ready']} ready; of {replay['inserted']} inserted {replay['trained']} trained, "
            f"{replay['expired']} expired, {replay['dropped']} dropped ({replay['lost']} of them lost); "
            f"{rollout['replay_restarts']} restarts"
        )
        lines.append(f"rollout workers: {len(rollout['workers'])}, wanted {rollout['target']}")
        lines += [
            f"  worker {w['worker_id']}: {w['state']}, policy version {w['version']}, started {w['life'] + 1} times, "
            f"{w['env_failures']} environment failures"
            for w in rollout["workers"]
        ]
    lines += [f"last error of the {who}: {text.splitlines()[0]}" for who, text in status["errors"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
