"""The embedded world as a Gymnasium environment: gymnasium.make("minestudio_jax/ChopTree-v0").

Importing this module registers every task that comes with the package and can be played here, under its name in
CamelCase.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import numpy as np

from minestudio_jax.envs import voxel
from minestudio_jax.envs.voxel.statistics import as_dict
from minestudio_jax.envs.voxel.world import playable_tasks


class VoxelEnv(gymnasium.Env[Any, Any]):
    """One world of one task.

    Observations are {"image": uint8 [height, width, 3]}. An action is the number of one of the task's choices, or with
    `action_set="vpt"` a dictionary of the numbers of buttons, camera and, where there is one, craft.

    Args:
      task: name or path of a task file.
      preset, action_set, **overrides: as `voxel.make` takes them.
      image_size: height and width, pixels.
      render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        task: str = "chop_tree",
        preset: str = "toy",
        action_set: str = "discrete",
        image_size: tuple[int, int] = (64, 64),
        render_mode: str | None = None,
        **overrides: Any,
    ) -> None:
        self.world = voxel.make(task, preset, action_set, **overrides)
        spaces: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Discrete(choices) for name, choices in self.world.action_spec.items()
        }
        self._single = action_set == "discrete"
        self.action_space = spaces["choice"] if self._single else gymnasium.spaces.Dict(spaces)
        self.observation_space = gymnasium.spaces.Dict(
            {"image": gymnasium.spaces.Box(0, 255, (*image_size, 3), np.uint8)}
        )
        self.render_mode = render_mode
        self._reset = jax.jit(self.world.reset)
        self._step = jax.jit(self.world.step)
        self._draw = jax.jit(lambda state: self.world.render(state, *image_size))
        self._large = jax.jit(lambda state: self.world.render(state, 360, 640))
        self._state: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._state = self._reset(jax.random.key(int(self.np_random.integers(2**31))))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One step; `info` holds the episode's statistics under Minecraft's names."""
        numbers = {"choice": action} if self._single else action
        agent = {name: np.asarray(number, np.int32).reshape(1) for name, number in numbers.items()}
        self._state, timestep = self._step(self._state, agent)
        told = jax.device_get(timestep)
        return (
            self._observation(),
            float(told.reward),
            bool(told.terminated),
            bool(told.truncated),
            as_dict(told.info),
        )

    def render(self) -> Any:
        """The view at Minecraft's 640x360, uint8 [360, 640, 3]."""
        return np.asarray(self._large(self._state)) if self.render_mode == "rgb_array" else None

    def _observation(self) -> dict[str, np.ndarray]:
        return {"image": np.asarray(self._draw(self._state))}


for _task in playable_tasks():
    _name = "".join(part.capitalize() for part in _task.split("_"))
    # Without a limit of Gymnasium's: episodes end by the world's own.
    gymnasium.register(id=f"minestudio_jax/{_name}-v0", entry_point=VoxelEnv, kwargs={"task": _task})
