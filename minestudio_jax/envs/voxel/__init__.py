"""The embedded world: a first-person voxel world in JAX with VPT's action space.

`world = make("chop_tree"); state = world.reset(key); state, timestep = world.step(state, action);
image = world.render(state, 64, 64)`. All pure; `jit` and `vmap` them as you like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minestudio_jax.envs.voxel.world import World, make

__all__ = ["World", "make"]


def __getattr__(name: str) -> Any:
    """Imports the world, and JAX with it, when it is asked for: the server of Malmo's protocol does without."""
    if name in __all__:
        from minestudio_jax.envs.voxel import world

        return getattr(world, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
