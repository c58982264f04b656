"""Whether those who only look on cost the environments any speed: a slow logger, and the recording of videos.

    python benchmarks/bystanders.py [--seconds=30] [--rounds=3]

"logger": a training run on eight environments of 20 ms, bound by them, without and with a sink that sleeps 5 s for
every record. "video": two Minecraft environments in processes of their own, whose game sleeps through a tick of 50 ms
and shows a new frame of 640x360 pixels; without recording, and with every episode of the first one recorded. In turns;
medians of the rounds, and the range of their ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pipeline import pipeline, steps_per_s

from minestudio_jax.envs.actions import null_action
from minestudio_jax.envs.callbacks.record import Record
from minestudio_jax.envs.callbacks.time_limit import TimeLimit
from minestudio_jax.envs.minecraft import Callback, Frame, Keys, MinecraftEnvironment

LOGGED_RUN = (
    "--env.factory=benchmarks.slow_environment:make",
    '--env.options={"step_s": 0.02, "height": 16, "width": 16, "jitter": 0.2}',
    "--policy.channels=4",
    "--policy.hidden_size=16",
    "--rollout.num_envs=8",
    "--rollout.inference_batch_size=8",
    "--rollout.fragment_length=32",
    "--trainer.context_length=32",
    "--trainer.batch_size_per_device=8",
    "--trainer.batches_per_iteration=1",
)
SLOW_SINK = "--logger.sinks=benchmarks.slow_sink:make"
TICK_S, EPISODE_STEPS = 0.05, 100


class SleepingGame:
    """A Minecraft that sleeps through its ticks; every frame is another."""

    frame_shape = (360, 640, 3)

    def __init__(self) -> None:
        # Smooth as a game's pictures are, and moving: noise would be the hardest there is for an encoder.
        rows, columns, channels = np.ogrid[:360, :640, :3]
        self._pictures = [((rows * 2 + columns + 60 * channels + 9 * n) % 256).astype(np.uint8) for n in range(16)]
        self._frames = itertools.cycle(self._pictures)

    def seed_worlds(self, seed: int) -> None:
        pass

    def reset(self, seed: int | None) -> Frame:
        return Frame(next(self._frames))

    def step(self, keys: Keys) -> Frame:
        time.sleep(TICK_S)
        return Frame(next(self._frames))

    def close(self) -> None:
        pass


def play(seconds: float, folder: str) -> float:
    """Steps per second of one environment, recorded if there is a folder."""
    callbacks: list[Callback] = [TimeLimit(EPISODE_STEPS)]
    if folder:
        callbacks.append(Record(folder))
    env = MinecraftEnvironment(SleepingGame(), callbacks)
    nothing = {name: array[0] for name, array in null_action().items()}
    env.reset()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        _, _, terminated, truncated, _ = env.step(nothing)
        steps += 1
        if terminated or truncated:
            env.reset()
    taken = time.perf_counter() - begin
    env.close()
    return steps / taken


def logged(seconds: float, slow: bool) -> list[float]:
    """Environment steps per second of the training run."""
    return [steps_per_s(pipeline((*LOGGED_RUN, *([SLOW_SINK] if slow else [])), seconds))]


def filmed(seconds: float, record: bool) -> list[float]:
    """Steps per second of both environments; the first is recorded or not."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from bystanders import play; print(play(float(sys.argv[1]), sys.argv[2]))"
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(seconds), where],
                cwd=Path(__file__).parent,
                stdout=subprocess.PIPE,
                text=True,
            )
            for where in (folder if record else "", "")
        ]
        said = [program.communicate(timeout=seconds + 60)[0] for program in programs]
        if record and len(list(Path(folder).glob("*.mp4"))) < seconds / (2 * TICK_S * EPISODE_STEPS):
            raise RuntimeError("videos were given up: the encoder does not keep up with the game")
        return [float(text) for text in said]


def compare(what: str, names: list[str], measure: Callable[[bool], list[float]], rounds: int) -> None:
    pairs = [(measure(False), measure(True)) for _ in range(rounds)]
    for i, name in enumerate(names):
        without, beside = [a[i] for a, _ in pairs], [b[i] for _, b in pairs]
        ratios = [b / a for a, b in zip(without, beside, strict=True)]
        print(
            f"{time.strftime('%Y-%m-%d')} {what}: {name} {statistics.median(without):.2f} steps/s without, "
            f"{statistics.median(beside):.2f} beside it: {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    compare("a sink of 5 s a record", ["the run"], lambda on: logged(given.seconds, on), given.rounds)
    compare("video", ["its own", "the other"], lambda on: filmed(given.seconds, on), given.rounds)


if __name__ == "__main__":
    main()
