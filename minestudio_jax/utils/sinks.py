"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, or a sink of the user's own."""

from __future__ import annotations

import importlib.util
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from minestudio_jax.config import ConfigError
from minestudio_jax.utils.imports import load_factory


class Sink(Protocol):
    """Takes one record an iteration. May be slow and may fail: it is called from a thread of its own."""

    def write(self, record: dict[str, Any]) -> None:
        """Takes a record: "iteration" is its step; numbers that are not finite are None."""
        ...

    def close(self) -> None:
        """Finishes; nothing is written afterwards."""
        ...


SinkFactory = Callable[[Path, dict[str, Any]], Sink]


class TensorBoardSink:
    """Event files in `<run>/tensorboard`; of a run that is continued, what is repeated replaces what was there."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        del config
        self._folder = run_dir / "tensorboard"
        self._writer: Any = None

    def write(self, record: dict[str, Any]) -> None:
        step = int(record["iteration"])
        if self._writer is None:
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(str(self._folder), purge_step=step)
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A run of Weights & Biases, continued when this one is. WANDB_MODE=offline and its other variables count."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # the screen is the board's
        import wandb

        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        self._run: Any = wandb.init(
            dir=str(run_dir), name=run_dir.name, id=id_file.read_text(), resume="allow", config=config
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(_numbers(record))

    def close(self) -> None:
        self._run.finish()


# Name in logger.sinks -> what makes it, and the module that pip must have installed.
KNOWN: dict[str, tuple[SinkFactory, str]] = {
    "tensorboard": (TensorBoardSink, "tensorboardX"),
    "wandb": (WandbSink, "wandb"),
}


def sink_factories(names: Sequence[str]) -> dict[str, SinkFactory]:
    """Name -> what makes the sink, for every one that logger.sinks names besides jsonl.

    Raises:
      ConfigError: it is not installed, or there is no such function.
    """
    factories: dict[str, SinkFactory] = {}
    for name in names:
        if name in KNOWN:
            factories[name], module = KNOWN[name]
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"logger.sinks: {name!r} needs {module}: pip install 'minestudio_jax[{name}]', or leave it out"
                )
        elif name != "jsonl":
            factories[name] = load_factory("logger.sinks", name)
    return factories


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in record.items() if isinstance(x, (int, float)) and math.isfinite(x)}
