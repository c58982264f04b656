"""What the screen shows of a run: a live board on a terminal, heartbeat lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 60


class Board(Protocol):
    """Shows stages while starting, numbers while running."""

    def stage(self, text: str) -> None:
        """Says what the program is doing now."""
        ...

    def update(self, metrics: Mapping[str, float], waiting_for: str = "") -> None:
        """Shows the newest numbers; `waiting_for` says what the learner waits for, if it does."""
        ...

    def close(self) -> None: ...


def make_board(kind: str, heartbeat_s: float, title: str) -> Board:
    """A board for the standard output.

    Args:
      kind: "live", "lines", or "auto": live if the output is a terminal.
      heartbeat_s: seconds between lines.
      title: of the run.
    """
    if kind == "live" or (kind == "auto" and sys.stdout.isatty()):
        return LiveBoard(title)
    return HeartbeatLines(heartbeat_s)


class HeartbeatLines:
    """One line a stage, then one line every `heartbeat_s` seconds."""

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._started = time.monotonic()
        self._last = -math.inf

    def stage(self, text: str) -> None:
        self._print(text)

    def update(self, metrics: Mapping[str, float], waiting_for: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self._heartbeat_s:
            return
        self._last = now
        if not metrics:
            self._print(f"waiting for {waiting_for}")
            return
        lag = metrics.get("lag/policy_versions_mean", math.nan)
        self._print(
            f"iteration {metrics['iteration']:.0f}  env steps {metrics['env_steps']:,.0f} "
            f"({metrics['speed/env_steps_per_s']:.0f}/s)  "
            f"return of the last 20 episodes {metrics['episode/return_mean_last_20']:.2f}{_success(metrics)}  "
            f"entropy {metrics['loss/entropy']:.2f}  lag {lag:.1f}"
            + (f"  waiting for {waiting_for}" if waiting_for else "")
        )

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)


class LiveBoard:
    """A panel that redraws itself: speed, learning curve, losses, and where the time goes."""

    def __init__(self, title: str) -> None:
        self._title = Text(title)
        self._started = time.monotonic()
        self._console = Console()
        self._curve: deque[float] = deque(maxlen=_CURVE_POINTS)
        self._last_iteration = -1.0
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def stage(self, text: str) -> None:
        # As it is: text from elsewhere may hold brackets, which rich would take for markup.
        self._live.console.print(Text(f"[{time.monotonic() - self._started:6.1f} s] {text}"))

    def update(self, metrics: Mapping[str, float], waiting_for: str = "") -> None:
        if not metrics:
            self._live.update(Panel(Text(f"waiting for {waiting_for}"), title=self._title))
            return
        mean = metrics["episode/return_mean_last_20"]
        if metrics["iteration"] != self._last_iteration and math.isfinite(mean):
            self._curve.append(mean)
            self._last_iteration = metrics["iteration"]
        self._live.update(Panel(self._body(metrics, waiting_for), title=self._title))

    def close(self) -> None:
        self._live.stop()

    def _body(self, metrics: Mapping[str, float], waiting_for: str) -> Group:
        table = Table.grid(padding=(0, 3))
        for _ in range(4):
            table.add_column()
        rows = [
            ("iteration", f"{metrics['iteration']:.0f}", "policy loss", f"{metrics['loss/policy']:.4f}"),
            ("env steps", f"{metrics['env_steps']:,.0f}", "value loss", f"{metrics['loss/value']:.4f}"),
            (
                "env steps/s",
                f"{metrics['speed/env_steps_per_s']:.0f}",
                "entropy",
                f"{metrics['loss/entropy']:.3f}",
            ),
            (
                "trained steps/s",
                f"{metrics['speed/trained_steps_per_s']:.0f}",
                "approx. KL",
                f"{metrics['ppo/approx_kl']:.4f}",
            ),
            (
                "policy version",
                f"{metrics['policy_version']:.0f}",
                "lag (versions)",
                f"{metrics['lag/policy_versions_mean']:.1f}",
            ),
        ]
        for row in rows:
            table.add_row(*row)
        phases = {k[5:-2]: v for k, v in metrics.items() if k.startswith("time/")}
        total = sum(phases.values()) or 1.0
        shares = "  ".join(f"{name} {seconds / total:.0%}" for name, seconds in phases.items())
        curve = (
            f"return of the last 20 episodes {metrics['episode/return_mean_last_20']:.2f}{_success(metrics)}  "
            f"{self._spark()}"
        )
        return Group(
            Text(curve),
            table,
            Text(f"time  {shares}"),
            Text(f"waiting for {waiting_for}" if waiting_for else ""),
        )

    def _spark(self) -> str:
        if not self._curve:
            return ""
        low, high = min(self._curve), max(self._curve)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((x - low) * scale)] for x in self._curve)


def _success(metrics: Mapping[str, float]) -> str:
    """Share of the last episodes that were solved, if the environment says."""
    rate = metrics.get("episode/success_rate_last_20", math.nan)
    return f" ({rate:.0%} solved)" if math.isfinite(rate) else ""
