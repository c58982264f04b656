"""Environment variables for the heap of a process that loads policy versions, and not of those that it starts."""

from __future__ import annotations

from collections.abc import Mapping

# Without them the C library gives a version's memory back to the kernel after each load, and most of the next one goes
# into getting it again, page by page: three times as long.
HEAP_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}

# Of a variable that keeps what the node had set. Ray fills variables in one after the other, so these come first, by
# name as well.
_KEPT = "KEPT_"


def heap_variables() -> dict[str, str]:
    """For the `env_vars` of a Ray actor: what its heap needs, and what its node had set before."""
    return {_KEPT + name: f"${{{name}}}" for name in HEAP_VARIABLES} | HEAP_VARIABLES


def without_heap_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as they would be without `heap_variables`; all of them where those were not set."""
    kept = {name: variables.get(_KEPT + name) for name in HEAP_VARIABLES}
    ours = {name for name, value in kept.items() if value is not None}
    others = {name: value for name, value in variables.items() if name not in ours | {_KEPT + name for name in ours}}
    return others | {name: value for name, value in kept.items() if value}
