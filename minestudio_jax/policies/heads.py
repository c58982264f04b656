"""The action distribution, as pure functions.

An action has one or more components, each categorical and independent given the observation; its
log-probability is the sum over components.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from minestudio_jax.envs.env import MASK_PREFIX, EnvironmentSpec

_RULED_OUT = -1e9  # finite: 0 times it is 0, in entropies and gradients


def check_masks(spec: EnvironmentSpec) -> None:
    """Raises ValueError if an environment's action masks do not fit its actions."""
    for name, array in spec.observation.items():
        if name.startswith(MASK_PREFIX):
            component = name.removeprefix(MASK_PREFIX)
            choices = spec.action.get(component)
            if choices is None or tuple(array.shape) != (choices,) or array.dtype not in ("bool", "uint8"):
                raise ValueError(
                    f"the observation {name!r} is {array.dtype} {list(array.shape)}; an action mask is bool or uint8 "
                    f"with one entry for each choice of a component, and the components are {dict(spec.action)}"
                )


def masked(logits: dict[str, jax.Array], obs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Rules out the choices that the observation says there are not.

    What is drawn, its log-probability, entropies and divergences all are those of the distribution that remains.

    Args:
      logits: component -> float32 [..., A].
      obs: `action_mask.<component>` -> bool or uint8 [..., A], 0 where a choice is ruled out; none of it: nothing is.
    Returns:
      component -> normalised log-probabilities [..., A].
    """
    return {
        name: jax.nn.log_softmax(jnp.where(obs[MASK_PREFIX + name] != 0, head, _RULED_OUT))
        if MASK_PREFIX + name in obs
        else head
        for name, head in logits.items()
    }


def sample(key: jax.Array, logits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Draws one action.

    Args:
      key: PRNG key.
      logits: component -> float32 [..., A].
    Returns:
      component -> int32 [..., 1].
    """
    keys = jax.random.split(key, len(logits))
    return {
        name: jax.random.categorical(k, logits[name])[..., None].astype(jnp.int32)
        for k, name in zip(keys, sorted(logits), strict=True)
    }


def mode(logits: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The most probable action: component -> int32 [..., 1]."""
    return {name: jnp.argmax(head, axis=-1)[..., None].astype(jnp.int32) for name, head in logits.items()}


def log_prob(logits: dict[str, jax.Array], action: dict[str, jax.Array]) -> jax.Array:
    """Log-probability of actions.

    Args:
      logits: component -> normalised log-probabilities [..., A].
      action: component -> int32 [..., 1].
    Returns:
      float32 [...].
    """
    terms = [jnp.take_along_axis(logits[name], action[name], axis=-1)[..., 0] for name in sorted(logits)]
    return sum(terms[1:], start=terms[0])


def entropy(logits: dict[str, jax.Array]) -> jax.Array:
    """Entropy in nats: -sum_a p(a) log p(a), summed over components; float32 [...]."""
    terms = [-jnp.sum(jnp.exp(head) * head, axis=-1) for _, head in sorted(logits.items())]
    return sum(terms[1:], start=terms[0])


def kl(p: dict[str, jax.Array], q: dict[str, jax.Array]) -> jax.Array:
    """KL(p || q) in nats, sum_a p(a) (log p(a) - log q(a)), summed over components; float32 [...]."""
    terms = [jnp.sum(jnp.exp(p[name]) * (p[name] - q[name]), axis=-1) for name in sorted(p)]
    return sum(terms[1:], start=terms[0])
