"""The training program, with every fragment checked before it is trained on.

    python -m tests.chaos.verified_train --settings...

Appends a line to `<run.dir>/verified` for every iteration's fragments: how many there were, and the first fault found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import flags

from minestudio_jax.rollout.fragment import SampleFragment
from minestudio_jax.run.command_line import run_program
from minestudio_jax.run.training_run import train
from minestudio_jax.trainer import loader
from tests.chaos.signed_env import end_of, reward_of, signature_of


def verify(fragment) -> None:
    """Raises AssertionError unless every genuine step of the fragment is a step of its environment, in order."""
    steps = fragment.metadata.valid_steps
    assert 1 <= steps <= fragment.length
    signatures = [signature_of(image) for image in fragment.obs["image"][: steps + 1]]
    for t in range(steps):
        seed, episode, step = signatures[t]
        length, kind = end_of(seed, episode)
        assert fragment.first[t] == (step == 0), (t, signatures[t])
        assert 0 <= step < length
        action = int(fragment.action["choice"][t, 0])
        assert abs(fragment.reward[t] - reward_of(seed, episode, step + 1, action)) < 1e-6, (t, signatures[t])
        ends = step + 1 == length
        assert fragment.terminated[t] == (ends and kind == "terminated"), (t, signatures[t])
        assert fragment.truncated[t] == (ends and kind == "truncated"), (t, signatures[t])
        assert fragment.truncated[t] or fragment.truncation_value[t] == 0, (t, signatures[t])
        follows = (seed, episode + 1, 0) if ends else (seed, episode, step + 1)
        # Behind an end there may be another life of the environment: its reset failed, or it was recycled.
        assert signatures[t + 1] == follows or (ends and signatures[t + 1][2] == 0), (t, signatures[t + 1])
        assert fragment.behaviour_logp[t] < 0


def train_verified(verify: Callable[[SampleFragment], None]) -> NoReturn:
    """The training program; `verify` raises AssertionError for a fragment that never happened so."""
    stack_fragments = loader.stack_fragments

    def verified(fragments, *rest):
        fault = ""
        try:
            for fragment in fragments:
                verify(fragment)
        except AssertionError as error:
            fault = f"{error!r} in {fragment.metadata}"
        with (Path(flags.FLAGS["run.dir"].value) / "verified").open("a") as file:
            print(len(fragments), fault, file=file, flush=True)
        return stack_fragments(fragments, *rest)

    loader.stack_fragments = verified
    run_program("train", train)


if __name__ == "__main__":
    train_verified(verify)
