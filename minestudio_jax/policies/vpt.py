"""VPT: OpenAI's policy for Minecraft, numerically equal to the reference.

Reference: Baker et al. 2022 (arXiv:2206.11795), appendix D; the attention's memory is Transformer-XL's (Dai et al.
2019, arXiv:1901.02860) with a relative bias that depends on content.

A network is described by `VPTShape`; `pretrained.py` reads it from OpenAI's `.model` files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies import winograd
from minestudio_jax.policies.convolution import convolve_3x3
from minestudio_jax.policies.grouping import in_groups
from minestudio_jax.policies.network_policy import NetworkPolicy
from minestudio_jax.policies.policy import Params, Policy, TensorRule
from minestudio_jax.policies.pooling import max_pool_3x3
from minestudio_jax.policies.value_normalizer import ValueNormalizer

EPSILON = 1e-5  # of every normalisation
BIAS_TERMS = 10  # content terms of the relative bias, per head
_EMBEDDING = 256  # width between the convolutions and the transformer
_IMAGES_FOR_CACHES = 4  # that a CPU's encoder takes at a time,
_FULL_CACHES = 64  # if it has so many channels; those of smaller ones fit anyway, and loops take long to compile
_HIDDEN = -1e9  # added to the logits of frames that must not be seen


@dataclass(frozen=True)
class VPTShape:
    """Sizes of a VPT network; the defaults are the 1x model's.

    Attributes:
      hidsize: D, width of the transformer.
      heads: of the attention; D / heads is the size of each.
      layers: L, recurrent blocks.
      memory: M, frames that a frame sees, itself included.
      pointwise_ratio: the blocks' hidden layers are so many times D wide.
      channels: of the three convolution stacks.
      image_size: height and width, pixels.
      temperature: by which the policy's logits are divided.
    """

    hidsize: int = 1024
    heads: int = 8
    layers: int = 4
    memory: int = 128
    pointwise_ratio: int = 4
    channels: tuple[int, ...] = (64, 128, 128)
    image_size: tuple[int, int] = (128, 128)
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.hidsize % self.heads:
            raise ValueError(f"a VPT network of hidsize={self.hidsize} cannot have {self.heads} heads: not a multiple")

    @classmethod
    def of_width(cls, factor: int) -> VPTShape:
        """OpenAI's 1x, 2x or 3x."""
        return cls(1024 * factor, 8 * factor, channels=(64 * factor, 128 * factor, 128 * factor))

    @property
    def final_map(self) -> tuple[int, int, int]:
        """Channels, height and width behind the last stack."""
        height, width = self.image_size
        for _ in self.channels:
            height, width = -(-height // 2), -(-width // 2)
        return self.channels[-1], height, width


class BlockMemory(NamedTuple):
    """What a recurrent block remembers: the last M frames, the oldest first.

    Attributes:
      mask: bool [B, M], the frame exists and belongs to the episode under way.
      keys, values: float32 [B, M, D], before they are split into heads. Those of frames that are masked stay.
    """

    mask: jax.Array
    keys: jax.Array
    values: jax.Array


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


def _fan_in_normalised(scale: float) -> nnx.Initializer:
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


class Convolution(nnx.Module):
    """Fan-in layer: group normalisation over the whole image, 3x3 convolution, ReLU; [N, H, W, I] -> [N, H, W, O].

    Without normalisation the convolution has a bias. The kernel is [3, 3, I, O], or its `winograd.transform`.
    """

    def __init__(
        self, inputs: int, outputs: int, scale: float, arithmetic: Arithmetic, rngs: nnx.Rngs, norm: bool = True
    ) -> None:
        self.arithmetic = arithmetic
        self.norm = _group_norm(inputs, rngs) if norm else None
        self.kernel = nnx.Param(_fan_in_normalised(scale)(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = None if norm else nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm is not None:
            x = self.norm(x)
        dtype = self.arithmetic.dtype
        kernel = self.kernel[...].astype(dtype)
        convolve = winograd.convolve if kernel.ndim == 3 else convolve_3x3
        y = convolve(x.astype(dtype), kernel, self.arithmetic.precision)
        return nnx.relu(y if self.bias is None else y + self.bias[...].astype(dtype))


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
        self.post_pool_norm = _group_norm(outputs, rngs)
        self.block_0 = ResidualBlock(outputs, arithmetic, rngs)
        self.block_1 = ResidualBlock(outputs, arithmetic, rngs)
        self.arithmetic = arithmetic

    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool_3x3(self.firstconv(x))
        x = self.post_pool_norm(x).astype(self.arithmetic.dtype)
        return self.block_1(self.block_0(x))


class Dense(nnx.Module):
    """Fan-in layer: layer normalisation, matrix product, ReLU. Without normalisation it has a bias."""

    def __init__(
        self, inputs: int, outputs: int, scale: float, arithmetic: Arithmetic, rngs: nnx.Rngs,
        norm: bool = True, activation: bool = True,
    ) -> None:  # fmt: skip
        self.norm = _layer_norm(inputs, rngs) if norm else None
        self.linear = _linear(inputs, outputs, _fan_in_normalised(scale), arithmetic, rngs, bias=not norm)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear(x if self.norm is None else self.norm(x))
        return nnx.relu(x) if self.activation else x


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


class Attention(nnx.Module):
    """Attention over the last M frames, with memory of those before the call and resets inside it."""

    def __init__(self, shape: VPTShape, arithmetic: Arithmetic, rngs: nnx.Rngs) -> None:
        size = shape.hidsize
        inner = math.sqrt((2 * shape.layers) ** -0.5)
        self.heads, self.memory = shape.heads, shape.memory
        self.arithmetic = arithmetic
        self.q = _linear(size, size, _fan_in_normalised(0.1), arithmetic, rngs)
        self.k = _linear(size, size, _fan_in_normalised(0.2), arithmetic, rngs, bias=False)
        self.v = _linear(size, size, _fan_in_normalised(inner), arithmetic, rngs, bias=False)
        self.proj = _linear(size, size, _fan_in_normalised(inner), arithmetic, rngs)
        self.r = _linear(size, BIAS_TERMS * shape.heads, _fan_in_normalised(0.1), arithmetic, rngs)
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
        self.pre_norm = _layer_norm(size, rngs)
        self.attn = Attention(shape, arithmetic, rngs)
        self.mlp0 = Dense(size, wide, 1.0, arithmetic, rngs)
        out_scale = (2 * shape.layers) ** -0.5
        self.mlp1 = Dense(wide, size, out_scale, arithmetic, rngs, norm=False, activation=False)

    def __call__(self, x: jax.Array, first: jax.Array, memory: BlockMemory) -> tuple[jax.Array, BlockMemory]:
        x = self.pre_norm(x)
        attended, memory = self.attn(x, first, memory)
        x = x + attended
        return x + self.mlp1(self.mlp0(x)), memory


class VPTNetwork(nnx.Module):
    """Images -> logits and normalised value."""

    def __init__(self, shape: VPTShape, action_spec: dict[str, int], arithmetic: Arithmetic, remat: bool,
                 images_at_a_time: int, rngs: nnx.Rngs) -> None:  # fmt: skip
        self.shape, self.remat, self.arithmetic = shape, remat, arithmetic
        self.encoder = Encoder(shape, arithmetic, images_at_a_time, rngs)
        for i in range(shape.layers):
            setattr(self, f"block_{i}", RecurrentBlock(shape, arithmetic, rngs))
        self.last = Dense(shape.hidsize, shape.hidsize, 1.0, arithmetic, rngs)
        self.final_norm = _layer_norm(shape.hidsize, rngs)
        self.pi = nnx.Dict(
            {name: _head(shape.hidsize, choices, arithmetic, rngs) for name, choices in action_spec.items()}
        )
        # The value decides how far everything else moves: always in full precision.
        self.value_head = _head(shape.hidsize, 1, Arithmetic(arithmetic.exact), rngs)

    def latent(
        self, image: jax.Array, first: jax.Array, memory: tuple[BlockMemory, ...]
    ) -> tuple[jax.Array, tuple[BlockMemory, ...]]:
        """uint8 [B, T, H, W, 3], bool [B, T], memory -> features [B, T, D] of policy and value, memory."""
        batch, steps = first.shape
        encode, recur = _encode, _recur
        if self.remat:
            encode, recur = nnx.remat(_encode), nnx.remat(_recur)
        x = encode(self.encoder, image.reshape(batch * steps, *image.shape[2:])).reshape(batch, steps, -1)
        x = x.astype(self.arithmetic.exact)
        after = []
        for i in range(self.shape.layers):
            x, block_memory = recur(getattr(self, f"block_{i}"), x, first, memory[i])
            after.append(block_memory)
        return self.final_norm(self.last(nnx.relu(x))), tuple(after)

    def __call__(
        self, image: jax.Array, first: jax.Array, memory: tuple[BlockMemory, ...]
    ) -> tuple[dict[str, jax.Array], jax.Array, tuple[BlockMemory, ...]]:
        """As `latent` -> log-probabilities, normalised value [B, T], memory."""
        x, memory = self.latent(image, first, memory)
        logits = {
            name: nnx.log_softmax(head(x).astype(self.arithmetic.exact) / self.shape.temperature)
            for name, head in self.pi.items()
        }
        return logits, self.value_head(x)[..., 0], memory


def _encode(encoder: Encoder, image: jax.Array) -> jax.Array:
    return encoder(image)


def _recur(block: RecurrentBlock, x: jax.Array, first: jax.Array, memory: BlockMemory) -> tuple[jax.Array, BlockMemory]:
    return block(x, first, memory)


def _group_norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=1, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def _layer_norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def _head(inputs: int, outputs: int, arithmetic: Arithmetic, rngs: nnx.Rngs) -> nnx.Linear:
    initial = _torch_default(inputs)
    return _linear(inputs, outputs, initial, arithmetic, rngs, bias_init=initial)


def _linear(
    inputs: int, outputs: int, initial: nnx.Initializer, arithmetic: Arithmetic, rngs: nnx.Rngs,
    bias: bool = True, bias_init: nnx.Initializer | None = None,
) -> nnx.Linear:  # fmt: skip
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=arithmetic.dtype, precision=arithmetic.precision, kernel_init=initial,
        bias_init=bias_init or nnx.initializers.zeros_init(), rngs=rngs,
    )  # fmt: skip


def _with_transformed_kernels(params: Params) -> Params:
    """Kernels [3, 3, I, O] as [36, I, O], but for the first: three input channels gain nothing."""

    def transformed(leaf: jax.Array) -> jax.Array:
        return winograd.transform(leaf) if leaf.ndim == 4 and leaf.shape[2] > 3 else leaf

    network = params["network"]
    return {**params, "network": {**network, "encoder": jax.tree.map(transformed, network["encoder"])}}


class VPTPolicy(NetworkPolicy):
    """VPT with a normalised value head; its memory is a tuple of one `BlockMemory` for each block.

    Args:
      spec: of the environment: an "image" of the network's size, and VPT's actions.
      shape: sizes of the network.
      compute_dtype: of convolutions and matrix products: "float32", "bfloat16", or "float64" where JAX has it enabled.
      remat: the backward pass computes the encoder's and the blocks' activations again instead of keeping them.
      normalizer: of the value.
      use_normalized_vf: whether its statistics follow the value targets.
    Raises:
      ValueError: the environment's images or actions are not what the network was made for.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        shape: VPTShape,
        compute_dtype: str = "float32",
        remat: bool = False,
        normalizer: ValueNormalizer | None = None,
        use_normalized_vf: bool = True,
    ) -> None:
        image, wanted = spec.observation.get("image"), (*shape.image_size, 3)
        if image is None or image.dtype != "uint8" or tuple(image.shape) != wanted:
            raise ValueError(
                f"this VPT network sees an 'image' of uint8 {list(wanted)}, the environment gives "
                f"{dict(spec.observation)}: set env.height={wanted[0]} and env.width={wanted[1]}"
            )
        if dict(spec.action) != actions.VPT_ACTION_SPEC:
            raise ValueError(
                f"a VPT network acts by {actions.VPT_ACTION_SPEC}, the environment by {dict(spec.action)}: "
                "set env.action_set=vpt, and take a task without crafting"
            )
        self.shape = shape
        self._spec, self._arithmetic = spec, Arithmetic(jnp.dtype(compute_dtype))
        # What a CPU gains by its caches an accelerator would lose.
        on_cpu = jax.default_backend() == "cpu"
        at_a_time = _IMAGES_FOR_CACHES if on_cpu and max(shape.channels) >= _FULL_CACHES else 0

        def build(rngs: nnx.Rngs) -> VPTNetwork:
            return VPTNetwork(shape, dict(spec.action), self._arithmetic, remat, at_a_time, rngs)

        super().__init__(build, normalizer or ValueNormalizer(), use_normalized_vf)

    def tensor_rules(self) -> Sequence[TensorRule]:
        """As Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053) splits a transformer: matrices that lead into heads or
        the hidden layer by their outputs, those that lead out by their inputs, so that a block adds up twice.

        The heads are split by their inputs: 8,641 is a prime number.
        """
        return (
            TensorRule(r"attn\.[qkv]\.(kernel|bias)$", -1),
            TensorRule(r"attn\.proj\.kernel$", 0),
            TensorRule(r"mlp0\.linear\.kernel$", 1),
            TensorRule(r"mlp1\.linear\.kernel$", 0),
            TensorRule(r"encoder\.dense\.linear\.kernel$", 1),  # by inputs, images would be cut into strips
            TensorRule(r"pi\.\w+\.kernel$", 0),
        )

    def for_cpu(self) -> tuple[Policy, Callable[[Params], Params]]:
        """With the convolutions' kernels transformed once, and never in bfloat16: a CPU takes up to four times as long
        with it.
        """
        dtype = jnp.dtype(self._arithmetic.exact).name
        return VPTPolicy(self._spec, self.shape, dtype, normalizer=self._normalizer), _with_transformed_kernels

    def initial_state(self, batch: int) -> tuple[BlockMemory, ...]:
        shape = self.shape

        def nothing() -> jax.Array:  # each an array of its own, so that all of them can be donated
            return jnp.zeros((batch, shape.memory, shape.hidsize), jnp.float32)

        return tuple(
            BlockMemory(jnp.zeros((batch, shape.memory), bool), nothing(), nothing()) for _ in range(shape.layers)
        )
