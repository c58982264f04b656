"""When an environment's instance is replaced although nothing is wrong with it: simulators leak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True)
class Recycling:
    """Limits of an instance, looked at when an episode ends; 0 is without limit.

    Attributes:
      after_s: seconds since it was started.
      after_steps: steps it has made.
      above_mib: MiB of resident memory of all its processes.
    """

    after_s: float = 0.0
    after_steps: int = 0
    above_mib: int = 0

    def reason(self, age_s: float, steps: int, resident_bytes: Callable[[], int]) -> str:
        """Why an instance is to be replaced, or an empty string; memory is measured only if it matters."""
        if self.after_s and age_s >= self.after_s:
            return f"it is {age_s:.0f} s old, env.recycle_after_s={self.after_s:g}"
        if self.after_steps and steps >= self.after_steps:
            return f"it has made {steps} steps, env.recycle_after_steps={self.after_steps}"
        if self.above_mib and (held := resident_bytes()) > self.above_mib * _MIB:
            return f"its processes hold {held / _MIB:.0f} MiB, env.recycle_above_mib={self.above_mib}"
        return ""
