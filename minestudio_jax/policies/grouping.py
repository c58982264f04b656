"""Images taken a few at a time, for the sake of a CPU's caches."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax


def in_groups(
    encode: Callable[[jax.Array], jax.Array], images: jax.Array, most: int, recompute: bool = False
) -> jax.Array:
    """encode(images), computed for equal groups of at most `most` images one after the other; 0: for all at once.

    Args:
      encode: [K, ...] -> [K, ...], each row by itself.
      images: [N, ...].
      most: images in a group. The largest divisor of N up to it is taken.
      recompute: for the gradient compute a group again, while all of it fits into the caches, instead of keeping what
        lies between. Networks with few channels are sooner computed than read from memory.
    """
    number = images.shape[0]
    most = min(most, number) or number
    group = next(size for size in range(most, 0, -1) if number % size == 0)
    if group == number:
        return encode(images)
    encoded = lax.map(jax.checkpoint(encode) if recompute else encode, images.reshape(-1, group, *images.shape[1:]))
    return encoded.reshape(number, *encoded.shape[2:])
