"""Time of day and weather at an episode's beginning."""

from __future__ import annotations

from typing import List, Optional

from minestudio_jax.envs.callbacks.commands import Commands


class TimeAndWeather(Commands):
    """Sets them when an episode begins; both go on from there.

    Args:
      time: ticks since dawn; None leaves it.
      weather: "clear", "rain" or "thunder"; "" leaves it.
    """

    def __init__(self, time: Optional[int], weather: str) -> None:
        commands: List[str] = []
        if time is not None:
            commands.append(f"/time set {time}")
        if weather:
            commands.append(f"/weather {weather}")
        super().__init__(commands)
