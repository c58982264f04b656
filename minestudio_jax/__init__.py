"""minestudio_jax: online reinforcement learning for Minecraft agents, in JAX and Ray."""

__version__ = "0.1.0"
