"""What Ray raises where an actor is gone."""

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
