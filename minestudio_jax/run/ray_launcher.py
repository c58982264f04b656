"""trainer.launcher=ray: the command, given once, has Ray Train start the trainer's processes, one a host.

This process then only waits, shows what the others say, and passes on the wish to stop.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run import control_files, ray_cluster
from minestudio_jax.run.command_line import EXIT_FAILURE, EXIT_USAGE
from minestudio_jax.run.stop_signal import StopSignal

_LOOK_S = 0.5
_NEEDED = ("pandas", "pyarrow", "pydantic", "tensorboardX")  # what ray[train] has beyond ray
_END_S = 60.0  # beyond run.stop_deadline_s, for the last checkpoint


def launch(config: Config) -> int:
    """Trains in processes that Ray starts, until that ends.

    Returns:
      Exit code: 0 after an orderly end, 1 if a process failed; it has said why.
    Raises:
      ConfigError: Ray cannot be joined, has not what the settings ask for, or a process found a setting wrong.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"trainer.launcher='ray' needs Ray Train, and {', '.join(missing)} for it: install "
            "minestudio_jax[multihost], or start the command on every host with trainer.launcher='external'"
        )
    # After a process has died, Ray has the others wait so long for it.
    os.environ.setdefault("JAX_DISTRIBUTED_SHUTDOWN_TIMEOUT_S", "5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{config.run.start_deadline_s:g}")
    stop = StopSignal()
    stop.install()
    try:
        ray_cluster.start_ray(config, show_output=True)
        stop.install()  # Ray has taken SIGTERM
        ray_cluster.wait_for_resources(config)
        code, reason = _fitted(config, stop)
    finally:
        ray_cluster.stop_ray()
    if code == EXIT_USAGE:
        raise ConfigError(reason)
    return code


def _fitted(config: Config, stop: StopSignal) -> tuple[int, str]:
    """Exit code and reason of the first host; Ray Train runs in a thread of its own, the signals come to this one."""
    run_dir = Path(config.run.dir)
    files = run_dir.with_name(f".{run_dir.name}.ray-train")  # Ray Train's own, on the file system that all hosts share
    outcome: list[tuple[int, str]] = []

    def fit() -> None:
        try:
            outcome.append(_trainer(config, files).fit().return_value or (EXIT_FAILURE, ""))
        except Exception as error:
            outcome.append((EXIT_FAILURE, f"a process of the trainer failed: {error}"))

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    command, give_up = "", float("inf")
    try:
        while thread.is_alive() and time.monotonic() < give_up:
            thread.join(_LOOK_S)
            if stop.event.is_set():
                give_up = min(give_up, time.monotonic() + config.run.stop_deadline_s + _END_S)
                # Again and again: what comes before the first host is up is taken for an earlier run's.
                with contextlib.suppress(OSError):
                    command = control_files.give_command(run_dir, {"stop": True}, time.monotonic()) or command
    finally:
        if command:
            control_files.take_back(run_dir, command)
        shutil.rmtree(files, ignore_errors=True)
    code, reason = outcome[0] if outcome else (EXIT_FAILURE, f"the trainer's processes did not end after {stop.name}")
    if code == EXIT_FAILURE and reason:
        print(f"train: {reason}", file=sys.stderr)
    return code, reason


def _trainer(config: Config, files: Path) -> Any:
    # Only a run that asks for it has this to import. Types are of no use: they are those of an older Ray Train.
    ray_train, ray_jax = (importlib.import_module(name) for name in ("ray.train", "ray.train.v2.jax"))
    resources = ray_cluster.host_resources(config)
    variables = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    return ray_jax.JaxTrainer(
        _learn,
        train_loop_config={"config": config.to_dict(), "folder": os.getcwd()},
        # Not only for GPUs: without it Ray lets every process be alone.
        jax_config=ray_jax.JaxConfig(use_gpu=True),
        scaling_config=ray_train.ScalingConfig(
            num_workers=config.trainer.num_hosts,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy="SPREAD",
        ),
        run_config=ray_train.RunConfig(
            name="run",
            storage_path=str(files),
            failure_config=ray_train.FailureConfig(max_failures=0),  # the command itself is what continues a run
            worker_runtime_env={
                "env_vars": {
                    **variables,
                    "JAX_PLATFORMS": "cuda" if "GPU" in resources else "cpu",
                    # It would take over SIGTERM, which is Ray's affair there.
                    "JAX_ENABLE_PREEMPTION_SERVICE": "false",
                }
            },
        ),
    )


def _learn(job: dict[str, Any]) -> tuple[int, str]:
    """One of the processes: exit code and reason."""
    from minestudio_jax.run.training_run import train

    os.chdir(job["folder"])  # relative paths in the settings are meant from there
    try:
        return train(Config.from_dict(job["config"])), ""
    except ConfigError as error:
        return EXIT_USAGE, str(error)
