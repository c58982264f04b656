"""The arithmetic that a device can do, measured beside a benchmark's own."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp


def ceiling(dtype: str) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    side = 2048 if jax.default_backend() == "cpu" else 4096
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(matrix, matrix))
    best = math.inf
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best
