"""The layers that VPT is made of, initialised as the reference does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from minestudio_jax.policies import winograd
from minestudio_jax.policies.convolution import convolve_3x3

EPSILON = 1e-5  # of every normalisation


@dataclass(frozen=True)
class Arithmetic:
    """How a network computes.

    Attributes:
      dtype: of convolutions and matrix products.
    """

    dtype: Any = jnp.float32

    @property
    def exact(self) -> Any:
        """Type of everything else (normalisations, softmax, memory, outputs): float32 at least."""
        return jnp.promote_types(jnp.float32, self.dtype)

    @property
    def precision(self) -> lax.Precision:
        """Products of float32 in full float32: accelerators would otherwise round their inputs."""
        return lax.Precision.DEFAULT if self.dtype == jnp.bfloat16 else lax.Precision.HIGHEST


def fan_in_normalised(scale: float) -> nnx.Initializer:
    """Every output unit's weights in a random direction, of L2 norm `scale`."""

    def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        weights = jax.random.normal(key, shape, dtype)
        axes = tuple(range(len(shape) - 1))
        return scale * weights / jnp.sqrt(jnp.sum(jnp.square(weights), axis=axes, keepdims=True))

    return initial


def _torch_default(fan_in: int) -> nnx.Initializer:
    """Uniform within +-1 / sqrt(fan in), weights and biases alike."""
    bound = 1 / math.sqrt(fan_in)

    def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initial


class ImageNorm(nnx.Module):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) with one group: over height, width and channels.

    [N, H, W, C] -> the same, float32 at least. Flax takes means of all three axes at once: sums of a million numbers,
    which compilers add up as they please. By XLA's ways for CPUs VPT's gradients were up to 5 % off in a layer. Here it
    is one axis after the other; parameters are drawn as Flax draws them.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(nnx.initializers.ones_init()(rngs.params(), (channels,)))
        self.bias = nnx.Param(nnx.initializers.zeros_init()(rngs.params(), (channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        x = x - _image_mean(x)
        factor = lax.rsqrt(_image_mean(jnp.square(x)) + EPSILON) * self.scale[...]  # [N, 1, 1, C]
        return x * factor + self.bias[...]


def _image_mean(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 1, 1, 1]."""
    for axis in (3, 2, 1):  # in the order in which they lie in memory
        x = x.mean(axis, keepdims=True)
    return x


class Convolution(nnx.Module):
    """Fan-in layer: group normalisation over the whole image, 3x3 convolution, ReLU; [N, H, W, I] -> [N, H, W, O].

    Without normalisation the convolution has a bias. The kernel is [3, 3, I, O], or its `winograd.transform`.
    """

    def __init__(
        self, inputs: int, outputs: int, scale: float, arithmetic: Arithmetic, rngs: nnx.Rngs, norm: bool = True
    ) -> None:
        self.arithmetic = arithmetic
        self.norm = ImageNorm(inputs, rngs) if norm else None
        self.kernel = nnx.Param(fan_in_normalised(scale)(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = None if norm else nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm is not None:
            x = self.norm(x)
        dtype = self.arithmetic.dtype
        kernel = self.kernel[...].astype(dtype)
        convolve = winograd.convolve if kernel.ndim == 3 else convolve_3x3
        y = convolve(x.astype(dtype), kernel, self.arithmetic.precision)
        return nnx.relu(y if self.bias is None else y + self.bias[...].astype(dtype))


class Dense(nnx.Module):
    """Fan-in layer: layer normalisation, matrix product, ReLU. Without normalisation it has a bias."""

    def __init__(
        self, inputs: int, outputs: int, scale: float, arithmetic: Arithmetic, rngs: nnx.Rngs,
        norm: bool = True, activation: bool = True,
    ) -> None:  # fmt: skip
        self.norm = layer_norm(inputs, rngs) if norm else None
        self.linear = linear(inputs, outputs, fan_in_normalised(scale), arithmetic, rngs, bias=not norm)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear(x if self.norm is None else self.norm(x))
        return nnx.relu(x) if self.activation else x


def layer_norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Over the last axis."""
    return nnx.LayerNorm(size, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def output_layer(inputs: int, outputs: int, arithmetic: Arithmetic, rngs: nnx.Rngs) -> nnx.Linear:
    """Of the network: logits of an action component, or the value."""
    initial = _torch_default(inputs)
    return linear(inputs, outputs, initial, arithmetic, rngs, bias_init=initial)


def linear(
    inputs: int, outputs: int, initial: nnx.Initializer, arithmetic: Arithmetic, rngs: nnx.Rngs,
    bias: bool = True, bias_init: nnx.Initializer | None = None,
) -> nnx.Linear:  # fmt: skip
    """A matrix product in the network's arithmetic; the bias begins at 0 unless `bias_init` says otherwise."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=arithmetic.dtype, precision=arithmetic.precision, kernel_init=initial,
        bias_init=bias_init or nnx.initializers.zeros_init(), rngs=rngs,
    )  # fmt: skip
