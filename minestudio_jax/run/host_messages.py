"""What the hosts of a run say to one another, besides what their devices exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata


@dataclass(frozen=True)
class Introduction:
    """A host's first words.

    Attributes:
      host: its index.
      name: of the machine.
      pid: of the process.
      machine: the same for processes on one machine, and for no others.
      settings: the run's, by name.
      versions: of what must not differ.
    """

    host: int
    name: str
    pid: int
    machine: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def __str__(self) -> str:
        return f"host {self.host} ({self.name}, process {self.pid})"


@dataclass(frozen=True)
class Begin:
    """Make the trainer.

    Attributes:
      mark: found in the run directory by whoever sees the same one.
      ray_address: where Ray answers; empty: no host needs it.
      spec: of the environments.
    """

    mark: str
    ray_address: str
    spec: EnvironmentSpec


@dataclass(frozen=True)
class Publish:
    """Publish the first policy version, and expect fragments."""


@dataclass(frozen=True)
class Iterate:
    """Train on the next batch, the first after `iteration` finished iterations."""

    iteration: int


@dataclass(frozen=True)
class Stop:
    """Write a checkpoint and end."""

    reason: str


Order = Begin | Publish | Iterate | Stop


@dataclass(frozen=True)
class Prepare:
    """Get ready for what is done next."""

    order: Order


@dataclass(frozen=True)
class Ready:
    """Whatever had to be waited for before the order is there."""

    order: Order


@dataclass(frozen=True)
class Go:
    """All hosts are ready for the order."""

    order: Order


@dataclass(frozen=True)
class Progress:
    """What the first host alone counts or decides, after an iteration; see PPOTrainer.set_progress."""

    env_steps: int
    wall_time_s: float
    return_mean: float
    publish: bool


@dataclass(frozen=True)
class Read:
    """Read your share of an iteration's fragments.

    Attributes:
      number: of this request, counted up.
      shares: (name of the replay buffer's actor, lease, fragment) of each of this host's fragments.
      rows: their places in the batch.
      metadata: of all of the iteration's fragments, in the batch's order.
    """

    number: int
    shares: Sequence[tuple[str, str, FragmentId]]
    rows: Sequence[int]
    metadata: Sequence[FragmentMetadata]


@dataclass(frozen=True)
class Load:
    """All hosts have their shares of this request."""

    number: int


@dataclass(frozen=True)
class Fetch:
    """A step towards the next batch of an iteration."""

    step: Read | Load


@dataclass(frozen=True)
class HaveRead:
    """The answer to Read, with what could not be had."""

    number: int
    lost: Sequence[FragmentId]


@dataclass(frozen=True)
class Beat:
    """I am alive."""


@dataclass(frozen=True)
class StopWanted:
    """This host was told to stop, by a signal of that name."""

    name: str


@dataclass(frozen=True)
class Farewell:
    """I end, and with me the run, at once.

    Attributes:
      reason: a sentence.
      code: exit code.
    """

    reason: str
    code: int


@dataclass(frozen=True)
class Bye:
    """I have done all that I had to do, and will not be heard of again."""
