"""VPT: OpenAI's policy for Minecraft, numerically equal to the reference.

Reference: Baker et al. 2022 (arXiv:2206.11795), appendix D. A network is described by `VPTShape`; `pretrained.py` reads
it from OpenAI's `.model` files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies import winograd
from minestudio_jax.policies.network_policy import NetworkPolicy
from minestudio_jax.policies.policy import Params, Policy, TensorRule
from minestudio_jax.policies.value_normalizer import ValueNormalizer
from minestudio_jax.policies.vpt_encoder import Encoder
from minestudio_jax.policies.vpt_layers import Arithmetic, Dense, layer_norm, output_layer
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.policies.vpt_transformer import BlockMemory, RecurrentBlock

_IMAGES_FOR_CACHES = 4  # that a CPU's encoder takes at a time,
_FULL_CACHES = 64  # if it has so many channels; those of smaller ones fit anyway, and loops take long to compile


class VPTNetwork(nnx.Module):
    """Images -> logits and normalised value."""

    def __init__(self, shape: VPTShape, action_spec: dict[str, int], arithmetic: Arithmetic, remat: bool,
                 images_at_a_time: int, rngs: nnx.Rngs) -> None:  # fmt: skip
        self.shape, self.remat, self.arithmetic = shape, remat, arithmetic
        self.encoder = Encoder(shape, arithmetic, images_at_a_time, rngs)
        for i in range(shape.layers):
            setattr(self, f"block_{i}", RecurrentBlock(shape, arithmetic, rngs))
        self.last = Dense(shape.hidsize, shape.hidsize, 1.0, arithmetic, rngs)
        self.final_norm = layer_norm(shape.hidsize, rngs)
        self.pi = nnx.Dict(
            {name: output_layer(shape.hidsize, choices, arithmetic, rngs) for name, choices in action_spec.items()}
        )
        # The value decides how far everything else moves: always in full precision.
        self.value_head = output_layer(shape.hidsize, 1, Arithmetic(arithmetic.exact), rngs)

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
