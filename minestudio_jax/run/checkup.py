"""All findings of `doctor`, told as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run.finding import Finding, bad, good
from minestudio_jax.run.host_checkup import check_host
from minestudio_jax.run.simulator_checkup import check_simulator, simulator_of

_GIB = 2**30
_FACTORY_BYTES = _GIB  # of an environment that nothing is known of
_EMBEDDED_BYTES = 16 * 2**20  # a world, its frames and its share of the programs
_SIGNS = {"good": "ok", "doubtful": "??", "bad": "!!"}


def examine(config: Config, frame_path: Path | None) -> bool:
    """Prints every finding; True if none is bad.

    Args:
      config: the run's settings.
      frame_path: where the trial's last frame is saved; None: no trial.
    """
    simulator = simulator_of(config.env)
    if simulator is not None:
        instance_bytes = simulator.instance_bytes(config.env)
    else:
        instance_bytes = _FACTORY_BYTES if config.env.factory else _EMBEDDED_BYTES
    findings: Iterator[Finding] = check_host(config, instance_bytes)
    if simulator is not None:
        findings = chain(findings, check_simulator(config.env, simulator))
    elif config.env.factory:
        findings = chain(findings, _check_factory(config))
    bads = [finding for finding in findings if _tell(finding).verdict == "bad"]
    if frame_path is None:
        print("no trial: --notrial", flush=True)
    elif bads:
        print("no environment is started before that is mended", flush=True)
    else:
        from minestudio_jax.run.trial import try_environment

        bads = [finding for finding in try_environment(config, frame_path) if _tell(finding).verdict == "bad"]
    if bads:
        print(f"A run cannot start yet: {', '.join(dict.fromkeys(finding.subject for finding in bads))}.", flush=True)
    else:
        print("A run can start.", flush=True)
    return not bads


def _check_factory(config: Config) -> Iterator[Finding]:
    """Of an environment that is neither ours nor Minecraft's."""
    from minestudio_jax.rollout.environments import check_factory

    interpreter = config.env.python
    if interpreter and not os.access(interpreter, os.X_OK):
        yield bad("interpreter", f"env.python={interpreter!r} is no program", "name a Python from 3.8 on")
        return
    try:
        check_factory(config)
    except ConfigError as error:
        yield bad("factory", str(error), "see docs/customization.md")
        return
    yield good("factory", config.env.factory)


def _tell(finding: Finding) -> Finding:
    print(f"{_SIGNS[finding.verdict]}  {finding.subject}: {finding.sentence}", flush=True)
    if finding.remedy:
        print(f"      -> {finding.remedy}", flush=True)
    return finding
