"""Saves one checkpoint after the other until it is killed, again and again; for test_checkpoint.

    python -m tests.trainer.saves_until_killed FOLDER KILLS SEED

Each life is a fork of a process that has imported everything, reads what there is, checks it, and goes on from there.
Prints the iteration that each life began with, and ends with an error if one found less than was finished before it,
or anything but what was saved.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer import sharding
from minestudio_jax.trainer.checkpoint import Checkpointer
from minestudio_jax.trainer.state import Counters, TrainState, initial_state
from tests.trainer.fragments import tiny_policy

CONFIG = TrainerConfig(save_interval=1, keep_interval=1000, keep_last=2)


def abstract() -> TrainState:
    state = jax.eval_shape(lambda: initial_state(tiny_policy(), CONFIG, jax.random.key(0)))
    return sharding.with_sharding(state, sharding.replicated(sharding.make_mesh(CONFIG)))


def filled(like: TrainState, iteration: int) -> TrainState:
    return jax.tree.map(lambda leaf: np.full(leaf.shape, iteration % 251, leaf.dtype), like)


def begin(folder: Path) -> tuple[Checkpointer, TrainState, int]:
    """Reads the newest checkpoint; its iteration, 0 if there is none."""
    checkpointer, like = Checkpointer(folder, CONFIG), abstract()
    restored = checkpointer.restore(like)
    if restored is None:
        return checkpointer, like, 0
    state, counters = restored
    jax.tree.map(np.testing.assert_array_equal, state, filled(like, counters.iteration))
    assert counters.trained_steps == 7 * counters.iteration, counters
    return checkpointer, like, counters.iteration


def live(folder: Path, out: int) -> NoReturn:
    """Tells with which iteration it begins, and of each one that is saved for certain."""
    checkpointer, like, iteration = begin(folder)
    os.write(out, f"{iteration}\n".encode())
    while True:
        iteration += 1
        checkpointer.save(filled(like, iteration), Counters(iteration=iteration, trained_steps=7 * iteration))
        checkpointer.flush()
        os.write(out, f"{iteration}\n".encode())


def main() -> None:
    folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    finished, save_s = 0, 0.0
    for _ in range(kills):
        told, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)  # so that it ends when nobody listens any more
            live(folder, out)
        os.close(out)
        with os.fdopen(told) as said:
            began = int(said.readline())
            assert began >= finished, f"{finished} was saved, and {began} is the newest"
            if not save_s:  # the first life shows how long a save takes
                since = time.monotonic()
                finished = int([said.readline() for _ in range(3)][-1])
                save_s = (time.monotonic() - since) / 3
            time.sleep(rng.uniform(0.0, 2 * save_s))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            finished = max([began, finished, *map(int, said)])
            print(began, flush=True)
    checkpointer, _, iteration = begin(folder)
    checkpointer.close()
    assert iteration >= finished
    print(iteration)


if __name__ == "__main__":
    main()
