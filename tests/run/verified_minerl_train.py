"""The training program on the scripted engine, with every fragment checked before it is trained on.

python -m tests.run.verified_minerl_train --settings...
"""

from __future__ import annotations

from minestudio_jax.envs import actions
from minestudio_jax.envs.callbacks.for_task import SETTLE_TICKS
from tests.chaos.verified_train import train_verified

_ATTACK = actions.KEY_TABLE[:, actions.BUTTONS.index("attack")]


def verify(fragment) -> None:
    """Frames spell episode and step, and every tick with attack held is a log: see tests/envs/scripted_engine.py."""
    steps = fragment.metadata.valid_steps
    assert 1 <= steps <= fragment.length
    images = fragment.obs["image"][: steps + 1]
    assert (images[..., :2] == images[:, :1, :1, :2]).all(), "a frame of several steps"
    spelt = [(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in images]
    for t in range(steps):
        episode, step = spelt[t]
        assert fragment.first[t] == (step == SETTLE_TICKS), (t, spelt[t])
        assert fragment.reward[t] == _ATTACK[fragment.action["buttons"][t, 0]], (t, spelt[t])
        assert not fragment.truncated[t]
        if fragment.terminated[t]:
            assert spelt[t + 1][1] == SETTLE_TICKS, (t, spelt[t + 1])
        else:
            assert spelt[t + 1] == (episode, step + 1), (t, spelt[t + 1])


if __name__ == "__main__":
    train_verified(verify)
