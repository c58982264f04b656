"""Where the experience of a run comes from; the conductor's loop is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from minestudio_jax.config import Config
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.policy import Policy
from minestudio_jax.run.device_experience import DeviceExperience
from minestudio_jax.run.hosts import LeadHost
from minestudio_jax.run.ray_experience import RayExperience
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.run.run_directory import RunDirectory
from minestudio_jax.run.serial_experience import SerialExperience
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import Publication
from minestudio_jax.utils.live_board import Board


class Experience(Protocol):
    """The experience side of a run, in the order in which it is used."""

    @property
    def steps(self) -> int:
        """Genuine environment steps that have reached the learner's side since the start of this process."""
        ...

    def start(self, cleanup: ExitStack) -> EnvironmentSpec | None:
        """Starts what it needs, to be stopped by `cleanup`; the environments' spec, or None if it is time to stop."""
        ...

    @property
    def ray_address(self) -> str:
        """Where other hosts join the Ray that holds the fragments; empty if there is none."""
        ...

    def collector(self, policy: Policy) -> DeviceCollector | None:
        """What the learner collects with itself; None if others collect."""
        ...

    def publication(self, policy: Policy, cleanup: ExitStack) -> Publication | None:
        """How policy versions get to those who collect; None if the learner collects itself."""
        ...

    def connect(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> bool:
        """Publishes the first policy and lets the experience flow; False if it is time to stop."""
        ...

    def observe(self, trainer: PPOTrainer, statistics: RolloutStatistics) -> None:
        """Takes note of the iteration that was finished."""
        ...

    def proceed(self, trainer: PPOTrainer) -> None:
        """Lets more experience flow where it waits for the new version, which has been handed over."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counters since the start of this process, by metric name."""
        ...

    def raise_failure(self) -> None:
        """Raises what has ended the experience for good and made the run stop, if that is why it stopped.

        Raises:
          RolloutFailure: says what.
        """
        ...

    def diagnosis(self) -> str:
        """Why there may be no experience."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Workers and buffer as they were last seen, for status.json; empty if there are none."""
        ...

    def set_num_workers(self, number: int) -> str:
        """Has rollout workers added or drained while the run goes on; says what will happen.

        Raises:
          ValueError: it cannot be done.
        """
        ...


def check_experience(config: Config, num_devices: int) -> None:
    """Checks settings that depend on the learner's devices and on this machine's modules.

    Args:
      config: the run's settings.
      num_devices: of the learner, all hosts together.
    Raises:
      ConfigError: they do not go together.
    """
    _KINDS[config.rollout.mode].check(config, num_devices)


def make_experience(
    config: Config, directory: RunDirectory, board: Board, stop: StopSignal, needed: int, host: LeadHost
) -> Experience:
    """The experience side that rollout.mode asks for; `needed` is fragments per iteration, of all hosts."""
    return _KINDS[config.rollout.mode](config, directory, board, stop, needed, host)


_KINDS: dict[str, type[RayExperience | SerialExperience | DeviceExperience]] = {
    "ray": RayExperience,
    "serial": SerialExperience,
    "device": DeviceExperience,
}
