"""What XLA's compiler for CPUs is told before it begins."""

from __future__ import annotations

import os
from importlib.metadata import version

# Short loops are left as they are, so that they become vector instructions. A loop over 8 or 16 channels would
# otherwise be unrolled, and the loop around it, over pixels, becomes vectors: every element is loaded by itself, up
# to twice as slow in Winograd's convolutions.
_VECTORS = ("--xla_backend_extra_options", "=xla_cpu_disable_loop_unrolling")

# Sums are XLA's own and not YNNPACK's, which jaxlib 0.10.2 and 0.11 hand them to: vmap(lambda r: norm(m @ r)) of 33,000
# vectors with three elements is wrong in the last 232 (github.com/jax-ml/jax/issues/39103), and with seven axes the
# process may die (issues/39257). Versions from 0.12 on are built with what mended both.
_OWN_SUMS = ("--xla_cpu_experimental_ynn_fusion_type", "=-reduce")
_NOT_FOR_SUMS_FROM = (0, 12)


def configure_cpu_compiler() -> None:
    """Adds to XLA_FLAGS how to compile for CPUs; what the user says of the same options there stays.

    XLA reads the variable once, when it compiles or opens devices for the first time, and processes inherit it: every
    program of ours begins with this, and so should others that use the package. Other platforms do not heed it.
    """
    os.environ["XLA_FLAGS"] = with_cpu_options(os.environ.get("XLA_FLAGS", ""), version("jaxlib"))


def with_cpu_options(flags: str, jaxlib: str) -> str:
    """`flags` with what is added to them for this version of jaxlib; XLA ends a process that names an unknown one.

    Flags that do not begin with a dash are the name of a file with flags, to which nothing can be added.
    """
    if flags and not flags.lstrip().startswith("-"):
        return flags
    options = [_VECTORS]
    if tuple(int(part) for part in jaxlib.split(".")[:2]) < _NOT_FOR_SUMS_FROM:
        options.append(_OWN_SUMS)
    return " ".join([*([flags] if flags else []), *(name + value for name, value in options if name not in flags)])
