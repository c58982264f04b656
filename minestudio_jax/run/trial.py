"""Starting one environment and playing a few steps, as the last word on whether a run can begin."""

from __future__ import annotations

import dataclasses
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.rollout.env_pool import EnvironmentSteps, EnvPool
from minestudio_jax.rollout.environments import make_pool
from minestudio_jax.run.finding import Finding, bad, doubtful, good
from minestudio_jax.utils.png import save_png

STEPS = 50
_POLL_S = 0.5


def try_environment(config: Config, frame_path: Path) -> Iterator[Finding]:
    """Plays `STEPS` random steps in one environment; the first failure is told, nothing is tried again.

    Args:
      config: the run's settings; of several tasks the first is played.
      frame_path: where the last frame is saved.
    """
    rollout = dataclasses.replace(config.rollout, num_envs=1, inference_batch_size=1)
    config = dataclasses.replace(config, rollout=rollout, env=dataclasses.replace(config.env, max_failures_per_hour=0))
    with tempfile.TemporaryDirectory(prefix="minestudio_jax-doctor-") as folder:
        began = time.monotonic()
        pool: EnvPool | None = None
        try:
            pool = make_pool(config, 0, 0, Path(folder), uuid.uuid4().hex)
            yield from _play(pool, config, began, frame_path)
        except (EnvironmentFailure, TimeoutError) as error:
            yield bad("trial", str(error), "the log's end above says what failed")
        finally:
            if pool is not None:
                pool.close()


def _play(pool: EnvPool, config: Config, began: float, frame_path: Path) -> Iterator[Finding]:
    rng = np.random.default_rng(config.run.seed)
    env = config.env
    steps = _receive(pool, env.start_deadline_s + env.reset_deadline_s)
    yield good("trial", f"the first frame came after {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    for _ in range(STEPS):
        action = {name: rng.integers(0, n, (1, 1)).astype(np.int32) for name, n in pool.spec.action.items()}
        pool.send(action, steps.env_id)
        steps = _receive(pool, env.step_deadline_s + env.reset_deadline_s)
    seconds = time.monotonic() - began
    yield good(
        "trial", f"{STEPS} random steps took {seconds:.1f} s: {STEPS / seconds:.1f} steps/s, alone and without a policy"
    )
    image = steps.obs[0].get("image")
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return
    shown, saved = f"the last frame, {image.shape[0]} x {image.shape[1]},", True
    try:
        save_png(frame_path, np.ascontiguousarray(image))
        where = f"is saved as {frame_path}"
    except OSError as error:
        saved, where = False, f"cannot be saved as {frame_path}: {error.strerror}"
    if image.min() == image.max():
        yield bad(
            "frame",
            f"{shown} is one colour all over; it {where}",
            "the display draws nothing: see the findings on the display, and docs/minecraft.md",
        )
    elif saved:
        yield good("frame", f"{shown} {where}: look at it")
    else:
        yield doubtful("frame", f"{shown} {where}", "give another file with --frame, and look at it")


def _receive(pool: EnvPool, deadline_s: float) -> EnvironmentSteps:
    give_up = time.monotonic() + deadline_s
    while (steps := pool.recv(_POLL_S)) is None:
        if time.monotonic() > give_up:  # the pool has deadlines of its own: this is for one that keeps none
            raise TimeoutError(f"the environment said nothing within {deadline_s:g} s")
    return steps
