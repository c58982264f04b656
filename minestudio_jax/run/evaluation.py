"""Playing episodes with a published policy, in one process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.config_checks import validate
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.env_pool import EnvPool
from minestudio_jax.rollout.environments import make_pool, worker_tasks
from minestudio_jax.rollout.inference import Inference
from minestudio_jax.run.run_directory import read_config
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.demonstrations import save_sequence
from minestudio_jax.utils.seeding import derived_seed, with_derived_seed

_RECV_TIMEOUT_S = 1.0


def evaluate(
    config: Config,
    given: Collection[str],
    episodes: int,
    version: int | None,
    greedy: bool,
    out: TextIO,
    record: Path | None = None,
) -> dict[str, Any]:
    """Plays the first `episodes` episodes to be begun, all of them to their ends.

    Episodes are counted in the order they begin, not end: otherwise short ones would be over-represented.

    Args:
      config: settings of the command line; only `run.dir` and those named in `given` count.
      given: names of the settings that replace the run's own.
      episodes: how many.
      version: policy version; 0 is the newest, None the one with the best return so far.
      greedy: most probable action instead of a sampled one.
      out: takes a line an episode and a JSON object at the end.
      record: folder to which the episodes are added as demonstrations, see `utils.demonstrations`.
    Returns:
      Means and deviations as printed.
    Raises:
      ConfigError: there is no run or no such version.
      ValueError: the settings do not fit the policy.
      EnvironmentFailure: the environments cannot be started, or break so often that going on makes no sense.
    """
    run_dir = Path(config.run.dir)
    # Other worlds than those that the policy was trained in.
    config = with_derived_seed(_merged(read_config(run_dir), config, given), "evaluation")
    path = published_version(run_dir, version)
    pool = make_pool(config, worker_id=0, worker_life=0, log_dir=run_dir / "logs", session_id=uuid.uuid4().hex)
    try:
        played = _play(config, pool, path, episodes, greedy, out, record)
    finally:
        pool.close()
    returns, lengths = [total for _, total, _ in played], [length for *_, length in played]
    result: dict[str, Any] = {
        "policy_version": path.name if version is None else float(path.name),
        "episodes": float(episodes),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "length_mean": float(np.mean(lengths)),
    }
    for task in config.env.tasks:
        its_returns = [total for its_task, total, _ in played if its_task == task]
        result[f"return_mean/{task}"] = float(np.mean(its_returns)) if its_returns else None
    print(json.dumps(result), file=out, flush=True)
    return result


def published_version(run_dir: Path, version: int | None) -> Path:
    """The folder of a version that the run still has; 0 is the newest, None the one with the best return so far.

    Raises:
      ConfigError: there is no such version.
    """
    if version is None:
        path = policy_store.best_path(run_dir / "versions")
        if not path.is_dir():
            raise ConfigError(f"--best: {path} does not exist; it appears with the run's first 20 episodes")
        return path
    versions = policy_store.list_versions(run_dir / "versions")
    if not versions or (version and version not in versions):
        raise ConfigError(
            f"--version={version}: {run_dir / 'versions'} holds {versions or 'no versions'}; 0 takes the newest"
        )
    return policy_store.version_path(run_dir / "versions", version or versions[-1])


def _play(
    config: Config, pool: EnvPool, version_path: Path, episodes: int, greedy: bool, out: TextIO, record: Path | None
) -> list[tuple[str, float, int]]:
    """(task, return, length) of every episode, in the order in which they were begun."""
    tasks = worker_tasks(config, 0)
    policy = make_policy(config, pool.spec)
    seed = derived_seed(config.run.seed, "sampling")
    inference = Inference(policy, pool.spec, pool.num_envs, config.rollout.inference_batch_size, seed, greedy)
    abstract = policy.abstract_params()
    params = inference.prepared(policy_store.load_version(version_path, abstract))
    version = int(version_path.name) if version_path.name.isdigit() else 0  # the best one does not say which it is
    begun = 0
    number = [-1] * pool.num_envs  # of the episode under way in each environment; -1: not counted
    total, length = np.zeros(pool.num_envs), np.zeros(pool.num_envs, int)
    seen: list[list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]] = [[] for _ in number]
    played: dict[int, tuple[str, float, int]] = {}
    while len(played) < episodes:
        steps = pool.recv(_RECV_TIMEOUT_S)
        if steps is None:
            continue
        for k, env_id in enumerate(steps.env_id):
            total[env_id] += steps.reward[k]
            length[env_id] += 1
            ended = bool(steps.terminated[k] or steps.truncated[k])
            if ended and number[env_id] >= 0:
                played[number[env_id]] = (tasks[env_id], float(total[env_id]), int(length[env_id]))
                if record is not None:
                    _save_episode(record, seen[env_id])
                what = f" of {tasks[env_id]}" if config.env.tasks else ""
                print(
                    f"episode {number[env_id] + 1}{what}: return {total[env_id]:g}, {length[env_id]} steps",
                    file=out,
                    flush=True,
                )
            if steps.first[k]:
                # An episode lost to a failure is played again under its number.
                if not (steps.failed[k] and number[env_id] >= 0):
                    number[env_id], begun = (begun, begun + 1) if begun < episodes else (-1, begun)
                total[env_id], length[env_id] = 0.0, 0
                seen[env_id] = []
        action = inference.act(params, steps.obs, steps.first, steps.env_id)().action
        if record is not None:
            for k, env_id in enumerate(steps.env_id):
                if number[env_id] >= 0:
                    obs = {name: x.copy() for name, x in steps.obs[k].items()}
                    seen[env_id].append((obs, {name: a[k] for name, a in action.items()}))
        pool.send(action, steps.env_id, version)
    return [played[i] for i in range(episodes)]


def _save_episode(folder: Path, seen: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> None:
    """Adds an episode, given as (observation, action) of each step, to the demonstrations in a folder."""
    observations, chosen = zip(*seen, strict=True)
    save_sequence(
        folder,
        {name: np.stack([obs[name] for obs in observations]) for name in observations[0]},
        {name: np.concatenate([action[name] for action in chosen]) for name in chosen[0]},
        np.arange(len(seen)) == 0,
    )


def _merged(stored: Config, command_line: Config, given: Collection[str]) -> Config:
    """The run's settings with those of the command line put over them."""
    values, new = stored.to_dict(), command_line.to_dict()
    for name in given:
        section, key = name.split(".", 1)
        values[section][key] = new[section][key]
    merged = Config.from_dict(values)
    validate(merged)
    return merged
