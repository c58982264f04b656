"""VPT's memory: a transformer that sees the last M frames.

The memory is Transformer-XL's (Dai et al. 2019, arXiv:1901.02860) with a relative bias that depends on content.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from minestudio_jax.policies.vpt_layers import Arithmetic, Dense, fan_in_normalised, layer_norm, linear
from minestudio_jax.policies.vpt_shape import VPTShape

BIAS_TERMS = 10  # content terms of the relative bias, per head
_HIDDEN = -1e9  # added to the logits of frames that must not be seen


class BlockMemory(NamedTuple):
    """What a recurrent block remembers: the last M frames, the oldest first.

    Attributes:
      mask: bool [B, M], the frame exists and belongs to the episode under way.
      keys, values: float32 [B, M, D], before they are split into heads. Those of frames that are masked stay.
    """

    mask: jax.Array
    keys: jax.Array
    values: jax.Array


class Attention(nnx.Module):
    """Attention over the last M frames, with memory of those before the call and resets inside it."""

    def __init__(self, shape: VPTShape, arithmetic: Arithmetic, rngs: nnx.Rngs) -> None:
        size = shape.hidsize
        inner = math.sqrt((2 * shape.layers) ** -0.5)
        self.heads, self.memory = shape.heads, shape.memory
        self.arithmetic = arithmetic
        self.q = linear(size, size, fan_in_normalised(0.1), arithmetic, rngs)
        self.k = linear(size, size, fan_in_normalised(0.2), arithmetic, rngs, bias=False)
        self.v = linear(size, size, fan_in_normalised(inner), arithmetic, rngs, bias=False)
        self.proj = linear(size, size, fan_in_normalised(inner), arithmetic, rngs)
        self.r = linear(size, BIAS_TERMS * shape.heads, fan_in_normalised(0.1), arithmetic, rngs)
        self.b_nd = nnx.Param(0.2 * jax.random.normal(rngs.params(), (BIAS_TERMS, shape.memory)))

    def __call__(self, x: jax.Array, first: jax.Array, memory: BlockMemory) -> tuple[jax.Array, BlockMemory]:
        """
        Args:
          x: float32 [B, T, D], normalised.
          first: bool [B, T].
          memory: before step 0.
        Returns:
          [B, T, D] and the memory after step T-1. Frames of other episodes stay in it, but are masked.
        """
        batch, steps, size = x.shape
        past, heads = self.memory, self.heads
        dtype, exact, precision = self.arithmetic.dtype, self.arithmetic.exact, self.arithmetic.precision
        keys = jnp.concatenate([memory.keys, self.k(x).astype(exact)], axis=1)
        values = jnp.concatenate([memory.values, self.v(x).astype(exact)], axis=1)

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(batch, -1, heads, size // heads).astype(dtype)

        episode = jnp.cumsum(first, axis=1)
        visible = _visible(episode, memory.mask, past)
        logits = jnp.einsum(
            "bihe,bjhe->bhij", split(self.q(x)), split(keys), precision=precision, preferred_element_type=exact
        )
        logits = logits / (size // heads) + self._relative_bias(x)
        weights = nnx.softmax(jnp.where(visible[:, None], logits, logits + _HIDDEN))
        mixed = jnp.einsum("bhij,bjhe->bihe", weights.astype(dtype), split(values), precision=precision)
        mask = jnp.concatenate([memory.mask & (episode[:, -1:] == 0), episode == episode[:, -1:]], axis=1)
        after = BlockMemory(mask[:, -past:], keys[:, -past:], values[:, -past:])
        return self.proj(mixed.reshape(batch, steps, size)), after

    def _relative_bias(self, x: jax.Array) -> jax.Array:
        """float32 [B, heads, T, M + T]: what each row, by its content, thinks of each age; 0 outside the window."""
        batch, steps, _ = x.shape
        content = self.r(x).astype(self.arithmetic.exact).reshape(batch, steps, self.heads, BIAS_TERMS)
        by_age = jnp.einsum("bihn,nd->bhid", content, self.b_nd[...], precision=lax.Precision.HIGHEST)
        # Row i sees age d in column M + i - d. Reversed, every row begins one column further right than the one above:
        # rows padded to one more than their length and laid end to end are just that when cut at their length.
        width = self.memory + steps
        padded = jnp.pad(by_age[..., ::-1], ((0, 0), (0, 0), (0, 0), (1, steps)))
        laid = padded.reshape(batch, self.heads, -1)[..., : steps * width]
        return laid.reshape(batch, self.heads, steps, width)


def _visible(episode: jax.Array, mask: jax.Array, past: int) -> jax.Array:
    """Which of the M remembered and T present frames each row sees, bool [B, T, M + T].

    Args:
      episode: int32 [B, T], number of episodes begun up to and with each step.
      mask: bool [B, M], of the memory.
      past: M.
    """
    steps = episode.shape[1]
    age = past + jnp.arange(steps)[:, None] - jnp.arange(past + steps)[None, :]
    in_window = (age >= 0) & (age < past)
    remembered = (episode[:, :, None] == 0) & mask[:, None, :]
    present = episode[:, :, None] == episode[:, None, :]
    return in_window & jnp.concatenate([remembered, present], axis=2)


class RecurrentBlock(nnx.Module):
    """Attention and a hidden layer around one normalised stream: the first skip starts behind the normalisation."""

    def __init__(self, shape: VPTShape, arithmetic: Arithmetic, rngs: nnx.Rngs) -> None:
        size, wide = shape.hidsize, shape.pointwise_ratio * shape.hidsize
        self.pre_norm = layer_norm(size, rngs)
        self.attn = Attention(shape, arithmetic, rngs)
        self.mlp0 = Dense(size, wide, 1.0, arithmetic, rngs)
        out_scale = (2 * shape.layers) ** -0.5
        self.mlp1 = Dense(wide, size, out_scale, arithmetic, rngs, norm=False, activation=False)

    def __call__(self, x: jax.Array, first: jax.Array, memory: BlockMemory) -> tuple[jax.Array, BlockMemory]:
        x = self.pre_norm(x)
        attended, memory = self.attn(x, first, memory)
        x = x + attended
        return x + self.mlp1(self.mlp0(x)), memory
