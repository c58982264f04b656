"""VPT's eyes: three stacks of residual convolutions, as in IMPALA, and two dense layers."""

from __future__ import annotations

import math

import jax
from flax import nnx

from minestudio_jax.policies.grouping import in_groups
from minestudio_jax.policies.pooling import max_pool_3x3
from minestudio_jax.policies.vpt_layers import Arithmetic, Convolution, Dense, ImageNorm
from minestudio_jax.policies.vpt_shape import VPTShape

_EMBEDDING = 256  # width between the convolutions and the transformer


class ResidualBlock(nnx.Module):
    """x + conv1(conv0(x)); both convolutions end in a ReLU."""

    def __init__(self, channels: int, arithmetic: Arithmetic, rngs: nnx.Rngs) -> None:
        scale = 1.5**0.25
        self.conv0 = Convolution(channels, channels, scale, arithmetic, rngs)
        self.conv1 = Convolution(channels, channels, scale, arithmetic, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv1(self.conv0(x))


class Stack(nnx.Module):
    """Convolution, 3x3 max-pooling with stride 2, normalisation, two residual blocks; halves the image."""

    def __init__(self, inputs: int, outputs: int, arithmetic: Arithmetic, rngs: nnx.Rngs, is_first: bool) -> None:
        self.firstconv = Convolution(inputs, outputs, 1.0, arithmetic, rngs, norm=not is_first)
        self.post_pool_norm = ImageNorm(outputs, rngs)
        self.block_0 = ResidualBlock(outputs, arithmetic, rngs)
        self.block_1 = ResidualBlock(outputs, arithmetic, rngs)
        self.arithmetic = arithmetic

    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool_3x3(self.firstconv(x))
        x = self.post_pool_norm(x).astype(self.arithmetic.dtype)
        return self.block_1(self.block_0(x))


class Encoder(nnx.Module):
    """Images uint8 [N, H, W, 3] -> [N, D]; `images_at_a_time`: how many the convolutions take at most, 0 for all."""

    def __init__(self, shape: VPTShape, arithmetic: Arithmetic, images_at_a_time: int, rngs: nnx.Rngs) -> None:
        inputs = (3, *shape.channels)
        self.arithmetic, self.images_at_a_time = arithmetic, images_at_a_time
        self.num_stacks = len(shape.channels)
        for i, outputs in enumerate(shape.channels):
            setattr(self, f"stack_{i}", Stack(inputs[i], outputs, arithmetic, rngs, is_first=i == 0))
        self.dense = Dense(math.prod(shape.final_map), _EMBEDDING, 1.4, arithmetic, rngs)
        self.linear = Dense(_EMBEDDING, shape.hidsize, 1.0, arithmetic, rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        # The dense layer's weights, as large as hundreds of images, are read once for all of them.
        return self.linear(self.dense(in_groups(self._convolve, image, self.images_at_a_time)))

    def _convolve(self, image: jax.Array) -> jax.Array:
        x = image.astype(self.arithmetic.exact) / 255
        for i in range(self.num_stacks):
            x = getattr(self, f"stack_{i}")(x)
        return x.reshape(x.shape[0], -1)
