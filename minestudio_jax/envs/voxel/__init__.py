"""The embedded world: a first-person voxel world in JAX with VPT's action space.

`world = make("chop_tree"); state = world.reset(key); state, timestep = world.step(state, action);
image = world.render(state, 64, 64)`. All pure; `jit` and `vmap` them as you like.
"""

from minestudio_jax.envs.voxel.world import World, make

__all__ = ["World", "make"]
