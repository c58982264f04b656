"""Starting, joining and leaving Ray."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from minestudio_jax.config import Config, ConfigError, RolloutConfig

_CONNECT_DEADLINE_S = 5.0
_EXIT_GRACE_S = 5.0  # for the processes of a private Ray to end by themselves
_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")
_STORE_PER_BUFFER = 1.5  # of the object store: what is on its way to the buffer or to the learner lies there as well
_LEAST_STORE_BYTES = 128 * 2**20
_LEAST_RESOURCE = 1e-4  # Ray counts in these


def expect_token(config: Config) -> None:
    """To be called before Ray is imported, which then looks whether clusters want a token.

    The private Ray of a first host does, and the other hosts' processes on its machine must show it.
    """
    if config.trainer.launcher == "external" and not config.run.ray_address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def start_ray(config: Config, show_output: bool = False) -> None:
    """Starts a private Ray on this machine, or joins the cluster at run.ray_address.

    Args:
      config: the run's settings.
      show_output: what Ray's processes print is printed here.
    Raises:
      ConfigError: there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():  # this is one of Ray's own processes
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An actor that sees no accelerator keeps the variables of its own runtime environment.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ours have environments of their own: workers that Ray starts beforehand would never be used, and cost a second.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray gives all its workers a low priority. Then who acts waits up to a quarter of a second for a learner that uses
    # all cores, and the environments wait with it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    check_reachable(config.run.ray_address)
    _check_shared_memory(config)
    address, workers, learners = config.run.ray_address, _demand(config), learner_resources(config)
    demand = {kind: workers.get(kind, 0.0) + learners.get(kind, 0.0) for kind in workers | learners}
    try:
        with warnings.catch_warnings():
            # JAX warns of every fork; Ray's children become other programs at once and never touch JAX.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(
                address=address or "local",
                # A private Ray is as large as asked: environments mostly wait, and the machine is the user's.
                num_cpus=None if address else max(os.cpu_count() or 1, int(-(-demand["CPU"] // 1))),
                resources=None if address else {kind: demand[kind] for kind in demand.keys() - {"CPU", "GPU"}},
                include_dashboard=None if address else False,
                # What does not fit is spilled to Ray's session directory on this host, which goes when Ray is left.
                object_store_memory=object_store_bytes(config),
                log_to_driver=show_output,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if not address:
            raise
        raise _not_taken_in(address, error) from error


def join_ray(address: str) -> None:
    """Joins the Ray that the first host has started or joined, to read from it.

    Raises:
      ConfigError: it does not answer.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise _not_taken_in(address, error) from error


def own_address() -> str:
    """Where the Ray that this process has joined answers, host:port."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def leave_ray() -> None:
    """Leaves a Ray that goes on, unless this is one of its processes."""
    import ray

    if not _belongs_to_ray():
        ray.shutdown()


def _belongs_to_ray() -> bool:
    """Whether this is one of Ray's own processes: an actor of the trainer's, not a program that has joined it."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def learner_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for all the trainer's processes together."""
    trainer = config.trainer
    if trainer.launcher != "ray":
        return {}
    return {kind: amount * trainer.num_hosts for kind, amount in host_resources(config).items()}


def host_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for each of the trainer's processes."""
    return config.trainer.host_resources or {"CPU": 1.0}


def _demand(config: Config) -> dict[str, float]:
    """What the rollout workers ask Ray for, all together."""
    rollout = config.rollout
    if rollout.mode != "ray":
        return {"CPU": 0.0, "GPU": 0.0}
    each = {"CPU": rollout.num_cpus_per_worker, "GPU": rollout.num_gpus_per_worker, **rollout.resources}
    return {kind: amount * rollout.num_rollout_workers for kind, amount in each.items()}


def object_store_bytes(config: Config) -> int | None:
    """Size of a private Ray's object store; None if Ray shall choose, or it is not ours to say."""
    wanted = int((config.run.object_store_gib or _STORE_PER_BUFFER * config.replay.max_gib) * _GIB)
    if config.run.ray_address or not wanted:
        return None
    wanted = max(wanted, _LEAST_STORE_BYTES)
    if config.run.object_store_gib:
        return wanted
    return min(wanted, shutil.disk_usage(_SHARED_MEMORY).free)  # the rest is spilled


def _check_shared_memory(config: Config) -> None:
    """Ray itself would put the object store on disk, or say nothing of the setting."""
    wanted, free = object_store_bytes(config), shutil.disk_usage(_SHARED_MEMORY).free
    if wanted is not None and wanted > free:
        raise ConfigError(
            f"run.object_store_gib={config.run.object_store_gib:g} does not fit into {_SHARED_MEMORY}, which has "
            f"{free / _GIB:.1f} GiB free: lower it (what does not fit is spilled to disk), or enlarge {_SHARED_MEMORY} "
            "(docker run --shm-size)"
        )


def check_reachable(address: str) -> None:
    """Raises ConfigError if nobody answers at a cluster's address; Ray itself would go on trying for minutes."""
    if ":" not in address:
        return
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), _CONNECT_DEADLINE_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"run.ray_address={address!r}: no Ray cluster answers there ({error}); "
        "start one with 'ray start --head', or leave the setting empty for a private one"
    )


def _not_taken_in(address: str, error: Exception) -> ConfigError:
    """Why joining failed; somebody is there if the address has a port, as `check_reachable` has found."""
    import ray

    if ":" not in address:
        return _no_cluster(address, error)
    return ConfigError(
        f"run.ray_address={address!r}: what answers there did not let this process join ({error}); a cluster that asks "
        "for a token wants it in ~/.ray/auth_token, or in RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token, and the cluster's "
        f"version of Ray must be {ray.__version__}, as here"
    )


def stop_ray() -> None:
    """Leaves Ray, and makes sure that no process below this one is left."""
    import ray

    if _belongs_to_ray():
        return
    children = psutil.Process().children(recursive=True)
    ray.shutdown()
    _, alive = psutil.wait_procs(children, timeout=_EXIT_GRACE_S)
    for process in alive:
        logging.getLogger(__name__).warning("process %d did not end by itself and is killed", process.pid)
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_EXIT_GRACE_S)


def wait_for_resources(config: Config) -> None:
    """Checks that Ray has what the rollout workers ask for; on a joined cluster nodes may still be on their way.

    Raises:
      ConfigError: it has not, within run.start_deadline_s.
    """
    import ray

    address = config.run.ray_address
    ended = time.monotonic() + (config.run.start_deadline_s if address else 0.0)
    where = f"the cluster at run.ray_address={address!r}" if address else "this machine"
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        lack = _lack(nodes, config.rollout, where) if config.rollout.mode == "ray" else ""
        lack = lack or _learners_lack(nodes, config, where)
        if not lack:
            return
        if time.monotonic() > ended:
            raise ConfigError(f"{lack}: ask for less" + (" or add nodes" if address else ""))
        time.sleep(0.5)


def _lack(nodes: Sequence[Mapping[str, float]], rollout: RolloutConfig, where: str) -> str:
    """What `nodes` have too little of for the rollout workers, each of which must fit on one; empty if nothing."""
    workers = rollout.num_rollout_workers
    settings = (
        ("CPU", "num_cpus_per_worker", rollout.num_cpus_per_worker),
        ("GPU", "num_gpus_per_worker", rollout.num_gpus_per_worker),
        *((kind, f"resources: {kind}", each) for kind, each in rollout.resources.items()),
    )
    asked = [setting for setting in settings if setting[-1]]
    for kind, name, each in asked:
        available = sum(node.get(kind, 0.0) for node in nodes)
        if available < workers * each - _LEAST_RESOURCE:
            return (
                f"the rollout workers ask for {workers * each:g} {kind}s (rollout.num_rollout_workers={workers} x "
                f"rollout.{name}={each:g}), {where} has {available:g}"
            )
    places = sum(
        min((int((node.get(kind, 0.0) + _LEAST_RESOURCE) / each) for kind, _, each in asked), default=workers)
        for node in nodes
    )
    if places >= workers:
        return ""
    of = " and ".join(f"rollout.{name}={each:g}" for _, name, each in asked)
    return (
        f"{where} has room for {places} of rollout.num_rollout_workers={workers} workers of {of}, each of which needs "
        "that on one node"
    )


def _learners_lack(nodes: Sequence[Mapping[str, float]], config: Config, where: str) -> str:
    """What there is too little of for the trainer's processes besides the rollout workers; empty if nothing."""
    workers = _demand(config)
    for kind, amount in learner_resources(config).items():
        available, its = sum(node.get(kind, 0.0) for node in nodes), workers.get(kind, 0.0)
        if available < amount + its - _LEAST_RESOURCE:
            return (
                f"the trainer's processes ask for {amount:g} {kind}s (trainer.num_hosts={config.trainer.num_hosts} x "
                f"trainer.host_resources), the rollout workers for {its:g}, {where} has {available:g}"
            )
    return ""
