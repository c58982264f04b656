"""What does not go together of the settings of where a run's processes are: hosts, Ray, how versions travel."""

from __future__ import annotations

import json
import re

from minestudio_jax.config import Config, is_number


def host_faults(config: Config) -> list[str]:
    """A sentence for each fault."""
    return [*_run_faults(config), *_host_faults(config)]


def _run_faults(config: Config) -> list[str]:
    faults: list[str] = []
    if not re.fullmatch(r"|auto|[^/:]+:\d+", config.run.ray_address):
        faults.append(f"run.ray_address={config.run.ray_address!r} is neither 'auto' nor of the form host:port")
    if 0 < config.run.object_store_gib < config.replay.max_gib:
        faults.append(
            f"run.object_store_gib={config.run.object_store_gib:g} is less than replay.max_gib="
            f"{config.replay.max_gib:g}, which is kept in it: raise it, or 0 sizes it by the other"
        )
    if config.run.object_store_gib and config.run.ray_address:
        faults.append(
            f"run.object_store_gib={config.run.object_store_gib:g} has no effect on the cluster at run.ray_address="
            f"{config.run.ray_address!r}: remove it, and give 'ray start' its --object-store-memory"
        )
    if config.publish.transport == "tmpfs" and config.run.ray_address:
        faults.append(
            "publish.transport='tmpfs' does not reach the other machines of "
            f"run.ray_address={config.run.ray_address!r}: set object_store, or directory where they share the run "
            "directory"
        )
    return faults


def _host_faults(config: Config) -> list[str]:
    """Settings of several hosts that do not go together."""
    faults, trainer = [], config.trainer
    launcher, hosts, index, coordinator = (
        trainer.launcher, trainer.num_hosts, trainer.host_index, trainer.coordinator,
    )  # fmt: skip
    if launcher == "none" and hosts > 1:
        faults.append(
            f"trainer.num_hosts={hosts} needs trainer.launcher: 'external' if this command is started on every host, "
            "'ray' if it is started once"
        )
    if launcher == "ray" and not hosts:
        faults.append("trainer.launcher='ray' needs trainer.num_hosts, the number of processes to start")
    if launcher != "external":
        for name, value, default in (("host_index", index, -1), ("coordinator", coordinator, "")):
            if value != default:
                faults.append(
                    f"trainer.{name}={value!r} has no effect with trainer.launcher={launcher!r}: remove it, or set "
                    "'external'"
                )
    elif coordinator:
        if not re.fullmatch(r"[^/]+:\d+", coordinator):
            faults.append(f"trainer.coordinator={coordinator!r} is not of the form host:port")
        if not hosts:
            faults.append(f"trainer.coordinator={coordinator!r} needs trainer.num_hosts, the number of processes")
        elif not 0 <= index < hosts:
            faults.append(
                f"trainer.host_index={index} is not one of the trainer.num_hosts={hosts} hosts, which are counted from "
                f"0: give each host its own, 0 to {hosts - 1}"
            )
    elif index != -1:
        faults.append(
            f"trainer.host_index={index} needs trainer.coordinator, host:port of the first host: give it, or leave "
            "both to what JAX finds out by itself"
        )
    if trainer.host_resources and launcher != "ray":
        faults.append(
            f"trainer.host_resources={json.dumps(trainer.host_resources)} has no effect with trainer.launcher="
            f"{launcher!r}: remove it"
        )
    for resource, amount in trainer.host_resources.items():
        if not (is_number(amount) and amount > 0):
            faults.append(f"trainer.host_resources: {amount!r} of {resource!r} is not a number above 0")
    if "TPU" in trainer.host_resources:
        faults.append(
            "trainer.host_resources: TPU hosts find one another by themselves: start the command on all of them with "
            "trainer.launcher='external'"
        )
    if launcher != "none" and config.rollout.mode == "serial":
        faults.append(
            f"rollout.mode='serial' plays in the only process there is, trainer.launcher={launcher!r} starts several: "
            "set mode 'ray' or 'device'"
        )
    return faults
