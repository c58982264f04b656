"""Environment variables for the memory of a process that moves versions and fragments, and not of those it starts."""

from __future__ import annotations

from collections.abc import Mapping

HEAP_VARIABLES = {
    # Otherwise the C library gives the memory of large fragments back to the kernel, and gets it again for the next,
    # page by page. All threads must not share one arena for it: XLA's would wait for its lock inside of every act.
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # Copies from a MiB on go past the caches. Otherwise only those do that are larger than the cache, which in a
    # virtual machine may claim hundreds of MiB; the others first read what they are going to overwrite, and take twice
    # as long. What the node had set goes on to hold.
    "GLIBC_TUNABLES": f"glibc.cpu.x86_non_temporal_threshold={2**20}:${{GLIBC_TUNABLES}}",
}

# Of a variable that keeps what the node had set. Ray fills variables in one after the other, by name, so that theirs
# must come first in the alphabet.
_BEFORE = "BEFORE_"


def heap_variables() -> dict[str, str]:
    """For the `env_vars` of a Ray actor: what its heap needs, and what its node had set before."""
    return {_BEFORE + name: f"${{{name}}}" for name in HEAP_VARIABLES} | HEAP_VARIABLES


def without_heap_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as they would be without `heap_variables`; all of them where those were not set."""
    before = {name: variables.get(_BEFORE + name) for name in HEAP_VARIABLES}
    ours = {name for name, value in before.items() if value is not None}
    others = {name: value for name, value in variables.items() if name not in ours | {_BEFORE + name for name in ours}}
    return others | {name: value for name, value in before.items() if value}
