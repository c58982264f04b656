"""Draws the learning curves of runs: python -m minestudio_jax.report --runs=runs/quickstart --out=curve.png

One line a run: the mean return of the last 20 episodes over environment steps, and over wall time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from minestudio_jax.utils.metrics import read_records

_RUNS = flags.DEFINE_list("runs", [], "Run directories, separated by commas.")
_OUT = flags.DEFINE_string("out", "report.png", "The picture, .png or .svg.")

_METRIC = "episode/return_mean_last_20"


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _refuse(f"unexpected argument {argv[1]!r}: several runs are separated by commas, without spaces")
    if not _RUNS.value:
        return _refuse("--runs is empty: name at least one run directory")
    curves = {}
    folders = [Path(name).name for name in _RUNS.value]
    for name in _RUNS.value:
        path = Path(name) / "metrics.jsonl"
        if not path.is_file():
            return _refuse(f"--runs={name}: there is no {path}")
        folder = Path(name).name
        label = folder if folders.count(folder) == 1 else name  # of two with one name each has its path
        curves[label] = [r for r in read_records(path) if r.get(_METRIC) is not None]
    try:
        draw(curves, Path(_OUT.value))
    except ImportError:
        return _refuse("drawing needs matplotlib: pip install 'minestudio_jax[report]'")
    except (OSError, ValueError) as error:
        return _refuse(f"--out={_OUT.value}: {error}")
    print(f"wrote {_OUT.value}")
    return 0


def draw(curves: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Writes the picture.

    Args:
      curves: name of a run -> its records, as in metrics.jsonl.
      out: path that ends in .png or .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    for name, records in curves.items():
        returns = [r[_METRIC] for r in records]
        by_steps.plot([r["env_steps"] / 1000 for r in records], returns, label=name)
        by_time.plot([r["wall_time_s"] / 60 for r in records], returns, label=name)
    by_steps.set(xlabel="environment steps, thousands", ylabel="return, mean of 20 episodes")
    by_time.set(xlabel="wall time, minutes")
    by_steps.legend()
    for axes in (by_steps, by_time):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def _refuse(message: str) -> int:
    print(f"report: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    app.run(main)
