"""How many devices lie along each axis of the learner's mesh, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import replace

from minestudio_jax.config import Config, ConfigError, ReplayConfig, TrainerConfig

MESH_AXES = ("data", "fsdp", "tensor")


def mesh_shape(mesh: str, num_devices: int | None = None) -> dict[str, int]:
    """Axis -> devices along it, for all of MESH_AXES, 1 for those not named.

    Args:
      mesh: trainer.mesh, such as "data:-1,fsdp:4"; -1 takes what the others leave.
      num_devices: of the learner; None: not known yet, and -1 stays.
    Raises:
      ConfigError: it says something else, or does not fit so many devices.
    """
    said = f"trainer.mesh={mesh!r}"
    shape = dict.fromkeys(MESH_AXES, 1)
    named = []
    for part in filter(None, mesh.replace(" ", "").split(",")):
        axis, _, size = part.partition(":")
        if axis not in shape:
            raise ConfigError(f"{said}: there is no axis {axis!r}; known are {', '.join(MESH_AXES)}")
        if axis in named:
            raise ConfigError(f"{said}: axis {axis!r} is named twice")
        if not (size == "-1" or (size.isascii() and size.isdigit() and int(size) > 0)):
            raise ConfigError(f"{said}: {part!r} is not an axis and its devices; write {axis}:4, or {axis}:-1")
        named.append(axis)
        shape[axis] = int(size)
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"{said}: only one axis can take what is left, not both {' and '.join(free)}")
    if num_devices is None:
        return shape
    fixed = math.prod(size for size in shape.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise ConfigError(
            f"{said} needs {'a multiple of ' if free else ''}{fixed} devices, the learner has {num_devices}"
            + ("" if free else "; give -1 to one axis")
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in shape.items()}


def named_devices(mesh: str) -> int:
    """Devices that a mesh needs, 0 if it takes what there is.

    Raises:
      ConfigError: see `mesh_shape`.
    """
    shape = mesh_shape(mesh)
    return 0 if -1 in shape.values() else math.prod(shape.values())


def batch_shards(config: TrainerConfig, num_devices: int) -> int:
    """Parts that a batch is split into: as many as there are devices, but those along 'tensor' share one.

    Raises:
      ConfigError: see `mesh_shape`.
    """
    shape = mesh_shape(config.mesh, num_devices)
    return shape["data"] * shape["fsdp"]


def fragments_per_iteration(config: TrainerConfig, num_devices: int) -> int:
    """Fragments that one iteration trains on: batch size times parts of a batch times batches.

    Raises:
      ConfigError: see `mesh_shape`.
    """
    return config.batch_size_per_device * batch_shards(config, num_devices) * config.batches_per_iteration


def sized_replay(config: Config, num_devices: int) -> ReplayConfig:
    """config.replay with a capacity in chunks, where `max_chunks` leaves it to the size of an iteration.

    Raises:
      ConfigError: see `mesh_shape`; or an iteration does not fit into the capacity that is set.
    """
    replay, needed = config.replay, fragments_per_iteration(config.trainer, num_devices)
    if not replay.max_chunks:
        return replace(replay, max_chunks=2 * replay.max_reuse * -(-needed // replay.fragments_per_chunk))
    capacity = replay.max_chunks * replay.fragments_per_chunk
    if needed > capacity:
        raise ConfigError(
            f"an iteration on {num_devices} devices takes {needed} fragments, replay.max_chunks={replay.max_chunks} "
            f"chunks of {replay.fragments_per_chunk} hold {capacity}: raise replay.max_chunks, or 0 makes the buffer "
            "large enough"
        )
    return replay
