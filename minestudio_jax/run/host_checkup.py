"""What a machine has against what a run's settings ask of it: cores, memory, disk, shared memory, Ray, devices."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil

from minestudio_jax.config import Config, ConfigError, PolicyConfig, num_environments
from minestudio_jax.run import ray_cluster
from minestudio_jax.run.finding import Finding, bad, doubtful, good

_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_BYTES = _GIB
_LEAST_DISK_BYTES = 5 * _GIB
_DESCRIPTORS_PER_ENV = 8  # sockets, memory and logs of a worker for each of its environments
_DESCRIPTORS_OF_RAY = 1024


def check_host(config: Config, instance_bytes: int) -> Iterator[Finding]:
    """Everything that has nothing to do with the simulator itself.

    Args:
      config: the run's settings.
      instance_bytes: memory of one environment.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _memory(config, instance_bytes),
        lambda: _cores(config),
        lambda: _disk(Path(config.run.dir)),
        lambda: _weights(config.policy),
        _shared_memory,
        lambda: _descriptors(num_environments(config)),
        lambda: _ray(config.run.ray_address),
        _devices,
    )
    for check in checks:
        yield from check()


def _memory(config: Config, instance_bytes: int) -> Iterator[Finding]:
    count, free = num_environments(config), psutil.virtual_memory().available
    needs = count * instance_bytes
    where = "over the hosts of the cluster" if config.run.ray_address else "on this machine"
    sentence = (
        f"{count} environments of about {instance_bytes / _GIB:.2g} GiB take {needs / _GIB:.2g} GiB {where}, where "
        f"{free / _GIB:.1f} GiB are free"
    )
    fits = int(free // instance_bytes)
    if needs <= free:
        yield good("memory", sentence)
    elif config.run.ray_address:
        yield doubtful("memory", sentence, f"see to it that the cluster has more: this host holds {fits} of them")
    else:
        yield bad(
            "memory",
            sentence,
            f"lower rollout.num_envs or rollout.num_rollout_workers: {fits} environments fit here",
        )


def _cores(config: Config) -> Iterator[Finding]:
    cores, count = len(os.sched_getaffinity(0)), num_environments(config)
    sentence = f"{count} environments and {config.rollout.num_rollout_workers} rollout workers on {cores} cores"
    if not config.env.factory or config.run.ray_address or count <= cores:
        yield good("processor", sentence)
    else:
        yield doubtful(
            "processor",
            sentence,
            "an instance of Minecraft wants a core of its own, more with a software renderer: fewer environments may "
            "give as many steps",
        )


def _disk(run_dir: Path) -> Iterator[Finding]:
    folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        yield bad("disk", f"{folder} cannot be written", "set run.dir to a folder that can")
        return
    remedy = "checkpoints, policy versions and logs may fill it: make room"
    yield _room("disk", folder, f"for run.dir={run_dir}", _LEAST_DISK_BYTES, remedy)


def _weights(policy: PolicyConfig) -> Iterator[Finding]:
    for setting in ("vpt_model", "vpt_weights"):
        value = getattr(policy, setting)
        if not value:
            continue
        if Path(value).expanduser().exists():
            yield good("policy", f"policy.{setting}={value} is there")
        else:
            yield bad(
                "policy",
                f"policy.{setting}={value!r}: there is no such file or folder",
                "OpenAI's files are at https://github.com/openai/Video-Pre-Training",
            )


def _shared_memory() -> Iterator[Finding]:
    if not _SHARED_MEMORY.is_dir():
        yield bad(
            "shared memory", f"there is no {_SHARED_MEMORY}", "observations and fragments lie there: mount a tmpfs"
        )
        return
    remedy = "observations, Ray's object store and policy versions lie there: in a container raise --shm-size"
    yield _room("shared memory", _SHARED_MEMORY, f"in {_SHARED_MEMORY}", _LEAST_SHARED_BYTES, remedy)


def _room(subject: str, folder: Path, where: str, least_bytes: int, remedy: str) -> Finding:
    free = shutil.disk_usage(folder).free
    sentence = f"{free / _GIB:.1f} GiB are free {where}"
    return good(subject, sentence) if free >= least_bytes else doubtful(subject, sentence, remedy)


def _descriptors(num_envs: int) -> Iterator[Finding]:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needs = _DESCRIPTORS_OF_RAY + _DESCRIPTORS_PER_ENV * num_envs
    sentence = f"a process may open {limit} files"
    if limit == resource.RLIM_INFINITY or limit >= needs:
        yield good("open files", sentence)
    else:
        yield doubtful("open files", f"{sentence}, about {needs} may be wanted", f"ulimit -n {min(hard, 65536)}")


def _ray(address: str) -> Iterator[Finding]:
    version = metadata.version("ray")
    if ":" not in address:
        what = f"the cluster that {address!r} finds" if address else "a private one is started on this machine"
        yield good("Ray", f"version {version}, {what}")
        return
    try:
        ray_cluster.check_reachable(address)
    except ConfigError as error:
        sentence, _, remedy = str(error).partition("; ")
        yield bad("Ray", sentence, remedy)
        return
    yield good("Ray", f"version {version}, a cluster answers at {address}")


def _devices() -> Iterator[Finding]:
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    sentence = f"the learner has {len(devices)} device(s): {kinds} (JAX {jax.__version__})"
    if devices[0].platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        yield doubtful("JAX", f"{sentence}, although this machine has an NVIDIA driver", "pip install 'jax[cuda13]'")
    else:
        yield good("JAX", sentence)
