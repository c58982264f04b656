"""A small recurrent image policy: IMPALA's residual CNN, a GRU, and categorical heads.

Reference: Espeholt et al. 2018 (arXiv:1802.01561), figure 3 right, with a GRU (Cho et al. 2014) for the LSTM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.convolution import ENOUGH_FOR_TILES, add_bias, convolve_3x3
from minestudio_jax.policies.grouping import in_groups
from minestudio_jax.policies.network_policy import NetworkPolicy
from minestudio_jax.policies.policy import PolicyState
from minestudio_jax.policies.pooling import max_pool_3x3
from minestudio_jax.policies.value_normalizer import ValueNormalizer

# Bytes of the first convolution's outputs for the images that a CPU takes at a time. For acting its own cache counts,
# for learning also what threads divide among them and what a turn costs.
_BYTES_ACTING = 2**20
_BYTES_LEARNING = 4 * 2**20
_BYTES_LEARNING_ON_EACH_CORE = 2 * 2**20  # where every core is a device


class Convolution(nnx.Module):
    """3x3 convolution with bias, [N, H, W, I] -> [N, H, W, O]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        initial = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(initial(rngs.params(), (3, 3, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return add_bias(convolve_3x3(x, self.kernel[...]), self.bias[...])


class ResidualBlock(nnx.Module):
    """x + conv(relu(conv(relu(x)))), channels kept."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.first = Convolution(channels, channels, rngs)
        self.second = Convolution(channels, channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.second(nnx.relu(self.first(nnx.relu(x))))


class ImpalaStack(nnx.Module):
    """Convolution, 3x3 max-pooling with stride 2, two residual blocks: [N, H, W, I] -> [N, H/2, W/2, O]."""

    def __init__(self, inputs: int, channels: int, stepwise_pooling: bool, rngs: nnx.Rngs) -> None:
        self.stepwise_pooling = stepwise_pooling
        self.convolution = Convolution(inputs, channels, rngs)
        self.block_0 = ResidualBlock(channels, rngs)
        self.block_1 = ResidualBlock(channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool_3x3(self.convolution(x), self.stepwise_pooling)
        return self.block_1(self.block_0(x))


class ResettingGRU(nnx.Module):
    """A GRU over time whose memory is emptied where `first` says so."""

    def __init__(self, inputs: int, size: int, rngs: nnx.Rngs) -> None:
        self.input = nnx.Linear(inputs, 3 * size, rngs=rngs)
        self.recurrent = nnx.Linear(size, 3 * size, rngs=rngs)

    def __call__(self, x: jax.Array, first: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs T steps.

        Args:
          x: float32 [B, T, I].
          first: bool [B, T].
          memory: float32 [B, S], before step 0.
        Returns:
          Outputs [B, T, S] and the memory [B, S] after step T-1.
        """
        kernel, bias = self.recurrent.kernel[...], self.recurrent.bias[...]  # type: ignore[index]

        def step(h: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            projected_t, first_t = inputs
            h = jnp.where(first_t[:, None], 0.0, h)
            reset_x, update_x, candidate_x = jnp.split(projected_t, 3, axis=-1)
            reset_h, update_h, candidate_h = jnp.split(h @ kernel + bias, 3, axis=-1)
            update = nnx.sigmoid(update_x + update_h)
            candidate = jnp.tanh(candidate_x + nnx.sigmoid(reset_x + reset_h) * candidate_h)
            h = update * h + (1 - update) * candidate
            return h, h

        # The input's share of every gate is one large product outside of the loop.
        time_major = (jnp.swapaxes(self.input(x), 0, 1), jnp.swapaxes(first, 0, 1))
        memory, outputs = lax.scan(step, memory, time_major)
        return jnp.swapaxes(outputs, 0, 1), memory


class ImpalaNetwork(nnx.Module):
    """Image -> logits and normalised value."""

    def __init__(
        self,
        image_shape: Sequence[int],
        action_spec: dict[str, int],
        channels: Sequence[int],
        hidden_size: int,
        acting_images: int,
        learning_images: int,
        recompute: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.acting_images, self.learning_images, self.recompute = acting_images, learning_images, recompute
        height, width, depth = image_shape
        self.num_stacks = len(channels)
        for i, outputs in enumerate(channels):
            setattr(self, f"stack_{i}", ImpalaStack(depth, outputs, recompute, rngs))
            height, width, depth = -(-height // 2), -(-width // 2), outputs
        self.embedding = nnx.Linear(height * width * depth, hidden_size, rngs=rngs)
        # Residual sums grow with depth and training; without this they saturate the memory's gates.
        self.norm = nnx.LayerNorm(hidden_size, rngs=rngs)
        self.memory = ResettingGRU(hidden_size, hidden_size, rngs)
        # Small first logits: the policy starts near uniform whatever the image.
        small = nnx.initializers.variance_scaling(1e-4, "fan_in", "normal")
        self.action_heads = nnx.Dict(
            {
                name: nnx.Linear(hidden_size, choices, kernel_init=small, rngs=rngs)
                for name, choices in sorted(action_spec.items())
            }
        )
        self.value_head = nnx.Linear(hidden_size, 1, rngs=rngs)

    def __call__(
        self, image: jax.Array, first: jax.Array, memory: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """uint8 [B, T, H, W, C], bool [B, T], float32 [B, S] -> log-probabilities, value [B, T], memory."""
        batch, steps = first.shape
        images = image.reshape(batch * steps, *image.shape[2:])
        at_a_time = self.acting_images if steps == 1 else self.learning_images
        x = in_groups(self._features, images, at_a_time, self.recompute)
        # All images at once: for a group its weights would take longer to read than to multiply.
        x = nnx.relu(self.norm(self.embedding(x)))
        x, memory = self.memory(x.reshape(batch, steps, -1), first, memory)
        logits = {name: nnx.log_softmax(head(x)) for name, head in self.action_heads.items()}
        return logits, self.value_head(x)[..., 0], memory

    def _features(self, image: jax.Array) -> jax.Array:
        """uint8 [N, H, W, C] -> float32 [N, F]."""
        x = image.astype(jnp.float32) / 255
        for i in range(self.num_stacks):
            x = getattr(self, f"stack_{i}")(x)
        return nnx.relu(x).reshape(x.shape[0], -1)


class ImpalaPolicy(NetworkPolicy):
    """IMPALA CNN + GRU with a normalised value head; its memory is float32 [B, hidden_size].

    Args:
      spec: of the environment; must have an "image" of uint8 [H, W, C].
      channels: output channels of each stack.
      hidden_size: width of embedding and memory.
      normalizer: of the value.
      use_normalized_vf: whether its statistics follow the value targets.
    Raises:
      ValueError: the environment gives no image.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        channels: Sequence[int] = (16, 32, 32),
        hidden_size: int = 256,
        normalizer: ValueNormalizer | None = None,
        use_normalized_vf: bool = True,
    ) -> None:
        image = spec.observation.get("image")
        if image is None or image.dtype != "uint8" or len(image.shape) != 3:
            raise ValueError(
                f"the IMPALA policy needs an observation 'image' of uint8 [H, W, C], the environment gives "
                f"{dict(spec.observation)}: name a policy of your own with policy.factory"
            )
        self._hidden_size = hidden_size
        # What a CPU gains by its caches an accelerator would lose.
        on_cpu = jax.default_backend() == "cpu"
        recompute = on_cpu and max(channels, default=0) >= ENOUGH_FOR_TILES
        learning = _BYTES_LEARNING if jax.local_device_count() == 1 else _BYTES_LEARNING_ON_EACH_CORE
        image_bytes = 4 * math.prod((*image.shape[:2], *channels[:1]))
        acting_images, learning_images = (max(1, most // image_bytes) * on_cpu for most in (_BYTES_ACTING, learning))

        def build(rngs: nnx.Rngs) -> ImpalaNetwork:
            return ImpalaNetwork(
                image.shape, dict(spec.action), channels, hidden_size, acting_images, learning_images, recompute, rngs
            )

        super().__init__(build, normalizer or ValueNormalizer(), use_normalized_vf)

    def initial_state(self, batch: int) -> PolicyState:
        return jnp.zeros((batch, self._hidden_size), jnp.float32)
