"""MineRL 1.0's Minecraft as a simulator: `--env.factory=minerl`.

MineRL's own client makes the mission and talks to the engine; the environment it makes is of a specification of ours.
That asks for the frame and for what the engine tells, as it tells it: MineRL's own survival observation takes 24 ms a
step to turn that into 7,800 handlers' values.

The client is MineRL's (`minerl`, Minecraft 1.16.5) or MineStudio's fork of it, whose engine takes commands, too.
Simulator side: NumPy, the standard library and that client only, Python 3.8 syntax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np

from minestudio_jax.envs import actions, engine_info
from minestudio_jax.envs.engine import Instance
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.envs.factory import (
    CommonOptions,
    WorldSeeds,
    callbacks_of,
    common_options,
    first_biome,
    make_environment,
    open_instance,
    read_task,
)
from minestudio_jax.envs.minecraft import Frame, Keys, MinecraftEnvironment
from minestudio_jax.envs.minerl_client import HEAP_MIB, Client, be_patient, find_client
from minestudio_jax.envs.start_inventory import drawn_inventory, without_commands
from minestudio_jax.envs.tasks import Stack


def make(
    index: int,
    seed: int,
    task: Union[str, Mapping[str, Any]] = "",
    *,
    client: str = "minerl",
    commands: Optional[bool] = None,
    resolution: Sequence[int] = (640, 360),
    biome: str = "",
    **common: Any,
) -> MinecraftEnvironment:
    """The factory behind `--env.factory=minerl`; options come from env.options.

    Args:
      index, seed: as every factory's.
      task: as a mapping, or a name that rewards nothing.
      client: "minerl" or "minestudio", the Python package that talks to the engine.
      commands: the engine takes commands, as MineStudio's does and MineRL's does not; None: by the client.
      resolution: width and height that Minecraft draws.
      biome: that a world begins in, where the task names none; empty: any.
      common: fields of `factory.CommonOptions` and of `engine.Launch`.
    Raises:
      MisconfiguredEnvironment: the client, a program or an option is missing or wrong, or the task needs commands.
      EnvironmentFailure: the engine does not start.
    """
    options, wanted = common_options(common), read_task(task)
    begins_in = first_biome(wanted, biome)
    parts = find_client(client)
    takes_commands = client == "minestudio" if commands is None else commands
    stacks: Tuple[Stack, ...] = ()
    if wanted is not None and not takes_commands:
        wanted, stacks = without_commands(wanted)
    rng = np.random.default_rng(seed)
    playing = callbacks_of(wanted, seed, index, options.record, finds_biomes=client == "minestudio")
    defaults = {"template_dir": parts.runtime, "heap_mib": HEAP_MIB[client]}
    instance = open_instance(index, options, defaults, lambda: parts.jar)

    def simulator() -> MineRLSimulator:
        size, inventory = (int(resolution[0]), int(resolution[1])), lambda: drawn_inventory(stacks, rng)
        specification = _specification(parts, size, begins_in, inventory, takes_commands)
        return MineRLSimulator(parts, instance, specification, size, seed, options)

    return make_environment(instance, simulator, playing)


class MineRLSimulator:
    """One engine under the contract of `minecraft.Simulator`.

    Args:
      client: that talks to it.
      instance: closed with the simulator.
      specification: from `_specification`.
      resolution: width and height of the frames.
      seed: of the stream of worlds' seeds.
      options: say how long the engine may be silent.
    """

    def __init__(
        self,
        client: Client,
        instance: Instance,
        specification: Any,
        resolution: Tuple[int, int],
        seed: int,
        options: CommonOptions,
    ) -> None:
        self.frame_shape = (resolution[1], resolution[0], 3)
        self._instance, self._seeds = instance, WorldSeeds(seed)
        self._questions = specification.questions
        self._reset_timeout_s, self._step_timeout_s = options.reset_timeout_s, options.step_timeout_s
        be_patient(client.talk, client.packets, self._reset_timeout_s)
        self._env = client.environment(specification, instances=[instance], is_fault_tolerant=False)

    def seed_worlds(self, seed: int) -> None:
        self._seeds.begin(seed)

    def reset(self, seed: Optional[int]) -> Frame:
        self._env.seed(self._seeds.next(seed), seed_spaces=False)  # counts for the next world only
        observation = self._instance.asked("reset", self._env.reset, self._reset_timeout_s)
        self._instance.client_socket.settimeout(self._step_timeout_s)
        return self._frame(observation, False)

    def step(self, keys: Keys) -> Frame:
        for question in ("chat", "voxels"):
            if question in keys and question not in self._questions:
                raise EnvironmentFailure(
                    f"the engine does not understand {question}={keys[question]!r}: MineRL's takes no commands and "
                    "tells no blocks, MineStudio's does; commands=true is for an engine that has learnt them"
                )
        observation, _, done, _ = self._instance.asked("step", partial(self._env.step, keys), self._step_timeout_s)
        return self._frame(observation, bool(done))

    def close(self) -> None:
        try:
            self._env.close()
        finally:
            self._instance.close()

    def _frame(self, observation: Dict[str, Any], done: bool) -> Frame:
        told, image = observation[_TOLD], observation["pov"]
        if not told["pov"]:  # for an empty frame the client makes up a black one
            raise EnvironmentFailure(f"the engine sent an empty frame; {self._instance.condition()}")
        if image.shape != self.frame_shape:
            raise EnvironmentFailure(f"the engine sent a frame of {list(image.shape)}, asked was {self.frame_shape}")
        state = engine_info.state(told)
        return Frame(image, done or not state.get("is_alive", True), engine_info.statistics(told), state)


_TOLD = "ObservationFromFullStats"


def _specification(
    client: Client,
    resolution: Tuple[int, int],
    biome: str,
    inventory: Callable[[], Dict[int, Dict[str, Any]]],
    takes_commands: bool,
) -> Any:
    """What the client is to ask of the engine: frames, and everything that it tells, as it tells it.

    Args:
      resolution: width and height of the frames.
      biome: group of biomes that worlds begin in; empty: any.
      inventory: called for each world; slot -> {"type", "quantity"} that the player begins with.
      takes_commands: the engine does, and answers questions for blocks if its client has words for them.
    """
    handlers = client.handlers
    known = {"chat": "ChatAction", "voxels": "VoxelAction"} if takes_commands else {}
    questions = {name: getattr(handlers, kind) for name, kind in known.items() if hasattr(handlers, kind)}

    class Told(client.handler):  # type: ignore[name-defined]
        """Asks for a part of the engine's JSON, and passes on the whole."""

        def __init__(self, element: str) -> None:
            super().__init__(client.spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32))
            self.element = element

        def to_string(self) -> str:
            return self.element.partition(" ")[0]

        def xml_template(self) -> str:
            return f"<{self.element}/>"

        def from_hero(self, told: Dict[str, Any]) -> Dict[str, Any]:
            return told

    class Specification(client.survival):  # type: ignore[name-defined]
        def create_observables(self) -> Any:
            wanted = (_TOLD, 'ObservationFromFullInventory flat="false"', "ObservationFromEquippedItem")
            return [handlers.POVObservation(resolution), *(Told(element) for element in wanted)]

        def create_actionables(self) -> Any:
            keys = [handlers.KeybasedCommandAction(name, name) for name in actions.BUTTONS]
            return [*keys, handlers.CameraAction(), *(kind() for kind in questions.values())]

        def create_monitors(self) -> Any:
            return []

        def create_agent_start(self) -> Any:
            begin = [*super().create_agent_start(), handlers.InventoryAgentStart(inventory())]
            if biome:
                begin.append(handlers.PreferredSpawnBiome(biome))
            return [*begin, handlers.DoneOnDeath()]

    specification = Specification(resolution=resolution)
    specification.questions = tuple(questions)
    return specification
