"""Bounds, choices, and settings against each other: what is wrong is told in full before anything starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from minestudio_jax.config import SINKS, Config, ConfigError, section_types
from minestudio_jax.config_experience_checks import experience_faults
from minestudio_jax.config_host_checks import host_faults
from minestudio_jax.config_learning_checks import learning_faults


def validate(config: Config) -> None:
    """Checks bounds, choices and the settings against each other.

    Raises:
      ConfigError: with one sentence for every fault found, each naming setting, value and remedy.
    """
    faults: list[str] = []
    for section, section_type in section_types().items():
        for f in dataclasses.fields(section_type):
            value = getattr(getattr(config, section), f.name)
            faults.extend(_field_faults(f"{section}.{f.name}", value, f.metadata))
    faults += [*learning_faults(config), *experience_faults(config), *host_faults(config), *_sink_faults(config)]
    if faults:
        raise ConfigError("; ".join(faults))


def _sink_faults(config: Config) -> list[str]:
    faults = []
    for sink in config.logger.sinks:
        if sink not in SINKS and sink.count(":") != 1:
            faults.append(
                f"logger.sinks: {sink!r} is neither one of {', '.join(SINKS)} nor of the form package.module:function"
            )
    if len(set(config.logger.sinks)) != len(config.logger.sinks):
        faults.append(f"logger.sinks={','.join(config.logger.sinks)} names one twice: remove it")
    return faults


def _field_faults(name: str, value: Any, metadata: Any) -> list[str]:
    faults = []
    if metadata["choices"] and value not in metadata["choices"]:
        faults.append(f"{name}={value!r} is not one of {', '.join(metadata['choices'])}")
    for number in value if isinstance(value, tuple) else (value,):
        if metadata["lower"] is not None and not number >= metadata["lower"]:
            faults.append(f"{name}={value} is below its least value {metadata['lower']}")
        if metadata["upper"] is not None and not number <= metadata["upper"]:
            faults.append(f"{name}={value} is above its greatest value {metadata['upper']}")
    if value == () and metadata["lower"] is not None and not metadata["empty"]:
        faults.append(f"{name} is empty: give at least one number, such as 16,32,32")
    return faults
