"""What Ray raises where an actor is gone, or there is no room for an object."""

from __future__ import annotations

import ray.exceptions

# The answer to a call of an actor that will not answer any more. Ray names some deaths by their causes, in exceptions
# that are no RayActorError: one that its memory monitor ended, one whose process could not be set up or placed.
ACTOR_GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RuntimeEnvSetupError,
    ray.exceptions.ActorUnschedulableError,
)

STORE_FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)
MAKE_ROOM = (
    "lower replay.max_gib or replay.max_chunks, raise run.object_store_gib, or give Ray's temporary directory more "
    "disk to spill to"
)
