"""What XLA is told before it begins."""

from __future__ import annotations

import os

_EXTRA_OPTIONS = "--xla_backend_extra_options"
CPU_VECTORS = f"{_EXTRA_OPTIONS}=xla_cpu_disable_loop_unrolling"


def use_cpu_vectors() -> None:
    """Has XLA's CPU compiler leave short loops as they are, so that they become vector instructions.

    A loop over 8 or 16 channels it would rather unroll, after which the loop around it, over pixels, is what it makes
    vectors of: each element loaded by itself, two to three times as slow in Winograd's convolutions.

    XLA reads its flags once, when it compiles or opens devices for the first time, and processes inherit them. Whoever
    gives such options in XLA_FLAGS knows better. Other platforms than CPUs do not heed this one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA_OPTIONS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_VECTORS}".strip()
