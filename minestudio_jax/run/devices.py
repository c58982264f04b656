"""How many devices JAX sees."""

from __future__ import annotations

import jax

from minestudio_jax.config import Config


def use_cpu_devices(config: Config) -> None:
    """Makes so many devices of the CPU as `trainer.cpu_devices` says; to be called before JAX has looked at any."""
    if config.trainer.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.trainer.cpu_devices)
