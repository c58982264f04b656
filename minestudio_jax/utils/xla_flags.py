"""What XLA's compiler for CPUs is told before it begins."""

from __future__ import annotations

import os

_OPTION = "--xla_backend_extra_options"
_VALUE = "xla_cpu_disable_loop_unrolling"


def configure_cpu_compiler() -> None:
    """Adds to XLA_FLAGS how to compile for CPUs; what the user says of the same option there stays.

    XLA reads the variable once, when it compiles or opens devices for the first time, and processes inherit it: every
    program of ours that computes begins with this, and so should others that use the package. Platforms other than
    CPUs do not heed it.
    """
    os.environ["XLA_FLAGS"] = with_cpu_options(os.environ.get("XLA_FLAGS", ""))


def with_cpu_options(flags: str) -> str:
    """`flags`, and that short loops be left as they are, so that they become vector instructions.

    A loop over 8 or 16 channels would otherwise be unrolled, and the loop around it, over pixels, becomes vectors:
    every element is loaded by itself, up to twice as slow in Winograd's convolutions.

    Flags that do not begin with a dash are the name of a file with flags, to which nothing can be added.
    """
    if _OPTION in flags or (flags and not flags.lstrip().startswith("-")):
        return flags
    return f"{flags} {_OPTION}={_VALUE}".lstrip()
