"""What XLA is told for CPUs before it begins: how to compile, and of what to keep silent."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

_OPTION = "--xla_backend_extra_options"
_VALUE = "xla_cpu_disable_loop_unrolling"

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_BY_DEFAULT, _ONLY_FATAL = "1", 3  # the former is what JAX sets when it is imported
_JAXLIB_WITH_FALSE_ALARMS = ("0.10.0", "0.10.1")


def configure_cpu_compiler() -> None:
    """Adds to XLA_FLAGS how to compile for CPUs; what the user says of the same option there stays.

    XLA reads the variable once, when it compiles or opens devices for the first time, and processes inherit it: every
    program of ours that computes begins with this, and so should others that use the package. Platforms other than
    CPUs do not heed it. Where XLA would give false alarms, what it says itself is left away but for what ends the
    process, unless TF_CPP_MIN_LOG_LEVEL says otherwise; errors that matter are Python's exceptions.
    """
    os.environ["XLA_FLAGS"] = with_cpu_options(os.environ.get("XLA_FLAGS", ""))
    if os.environ.get(_LOG_LEVEL, _BY_DEFAULT) == _BY_DEFAULT and _gives_false_alarms():
        os.environ[_LOG_LEVEL] = str(_ONLY_FATAL)  # for a jaxlib that is still to be loaded, and for child processes
        if "jaxlib" in sys.modules:
            from jaxlib import utils

            utils.absl_set_min_log_level(_ONLY_FATAL)


def _gives_false_alarms() -> bool:
    """Whether XLA would call each program of its cache one for another machine, two errors on the screen for each.

    On CPUs with AVX-512 it notes with a program how it prefers to gather, takes that for what the CPU must be able to
    do, and runs the program all the same (https://github.com/openxla/xla/issues/44565).
    """
    if importlib.metadata.version("jaxlib") not in _JAXLIB_WITH_FALSE_ALARMS:
        return False
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "avx512f" in processor.read_text()


def with_cpu_options(flags: str) -> str:
    """`flags`, and that short loops be left as they are, so that they become vector instructions.

    A loop over 8 or 16 channels would otherwise be unrolled, and the loop around it, over pixels, becomes vectors:
    every element is loaded by itself, up to twice as slow in Winograd's convolutions.

    Flags that do not begin with a dash are the name of a file with flags, to which nothing can be added.
    """
    if _OPTION in flags or (flags and not flags.lstrip().startswith("-")):
        return flags
    return f"{flags} {_OPTION}={_VALUE}".lstrip()
