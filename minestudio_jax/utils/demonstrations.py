"""Demonstrations on disk: what was seen and what was done, step by step. NumPy only.

A folder holds one folder for each sequence of L consecutive steps, and that one these files:

  obs.<name>.npy          [L, ...], dtype and shape as the environments' spec has them, such as obs.image.npy
  action.<component>.npy  integers [L], what was done on observation t
  first.npy               bool [L], observation t begins an episode

They are memory-mapped: only the steps that are drawn are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minestudio_jax.envs.env import EnvironmentSpec

_PARTIAL = ".partial"  # at the end of the name of a sequence that is being written


class DemonstrationError(ValueError):
    """Demonstrations cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Windows:
    """B pieces of W steps.

    Attributes:
      obs: name -> [B, W, ...].
      action: component -> int32 [B, W, 1].
      first: bool [B, W]; true at step 0, whose past is not known.
      mask: float32 [B, W], 0 behind the end of a sequence that is shorter than W.
    """

    obs: dict[str, np.ndarray]
    action: dict[str, np.ndarray]
    first: np.ndarray
    mask: np.ndarray


class Demonstrations:
    """The sequences in a folder.

    Args:
      folder: of them all.
    Raises:
      DemonstrationError: there are none, or their files do not go together.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DemonstrationError(f"{folder} is not a folder")
        self._paths = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.endswith(_PARTIAL))
        self._sequences = [_opened(path) for path in self._paths]
        if not self._paths:
            raise DemonstrationError(f"{folder} holds no sequences: each is a folder with obs.<name>.npy and so on")
        self._lengths = np.array([len(sequence["first"]) for sequence in self._sequences])

    @property
    def steps(self) -> int:
        """Of all sequences."""
        return int(self._lengths.sum())

    @property
    def longest(self) -> int:
        """Steps of the longest sequence."""
        return int(self._lengths.max())

    def check(self, spec: EnvironmentSpec) -> None:
        """
        Raises:
          DemonstrationError: they are not of such environments.
        """
        wanted = {f"obs.{name}": (a.shape, np.dtype(a.dtype)) for name, a in spec.observation.items()}
        names = {*wanted, "first", *(f"action.{component}" for component in spec.action)}
        for path, sequence in zip(self._paths, self._sequences, strict=True):
            if set(sequence) != names:
                raise DemonstrationError(f"{path} has the arrays {sorted(sequence)}, the environments {sorted(names)}")
            for name, (shape, dtype) in wanted.items():
                array = sequence[name]
                if array.shape[1:] != shape or array.dtype != dtype:
                    raise DemonstrationError(
                        f"{path}: {name} is {array.dtype} {array.shape[1:]} a step, the environments' {dtype} {shape}"
                    )
            for component, choices in spec.action.items():
                action = sequence[f"action.{component}"]
                if action.min() < 0 or action.max() >= choices:
                    raise DemonstrationError(
                        f"{path}: action.{component} has {action.min()} to {action.max()}, the environments 0 to "
                        f"{choices - 1}"
                    )

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Windows:
        """Draws `count` windows of `length` steps, every place in every sequence with equal probability."""
        places = np.maximum(self._lengths - length + 1, 1)
        chosen = rng.choice(len(places), count, p=places / places.sum())
        begins = rng.integers(0, places[chosen])

        def piece(name: str) -> np.ndarray:
            parts = [self._sequences[n][name][begin : begin + length] for n, begin in zip(chosen, begins, strict=True)]
            out = np.zeros((count, length, *parts[0].shape[1:]), parts[0].dtype)
            for row, part in zip(out, parts, strict=True):
                row[: len(part)] = part
            return out

        names = list(self._sequences[0])
        first = piece("first")
        first[:, 0] = True
        return Windows(
            obs={name[len("obs.") :]: piece(name) for name in names if name.startswith("obs.")},
            action={
                name[len("action.") :]: piece(name)[..., None].astype(np.int32)
                for name in names
                if name.startswith("action.")
            },
            first=first,
            mask=(np.arange(length) < (self._lengths[chosen] - begins)[:, None]).astype(np.float32),
        )


def save_sequence(
    folder: Path, obs: Mapping[str, np.ndarray], action: Mapping[str, np.ndarray], first: np.ndarray
) -> Path:
    """Adds a sequence; it appears when it is complete.

    Args:
      folder: of all; made if missing.
      obs: name -> [L, ...].
      action: component -> integers [L].
      first: bool [L].
    Returns:
      Its own folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
    path = folder / f"{number:06d}"
    partial = path.with_name(path.name + _PARTIAL)
    partial.mkdir(exist_ok=True)
    arrays = {f"obs.{name}": x for name, x in obs.items()} | {f"action.{name}": x for name, x in action.items()}
    for name, array in {**arrays, "first": first}.items():
        np.save(partial / f"{name}.npy", array)
    return partial.rename(path)


def _opened(path: Path) -> dict[str, np.ndarray]:
    """Name without .npy -> array of one sequence."""
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DemonstrationError(f"{file} is not a NumPy file that can be mapped: {error}") from error
    if "first" not in arrays or arrays["first"].dtype != bool or arrays["first"].ndim != 1:
        raise DemonstrationError(f"{path}: first.npy must be there, bool [L]")
    length = len(arrays["first"])
    if not length:
        raise DemonstrationError(f"{path} has no steps")
    for name, array in arrays.items():
        if not array.shape or len(array) != length:
            raise DemonstrationError(f"{path}: {name}.npy has shape {array.shape}, first.npy {length} steps")
        if name.startswith("action.") and not (array.ndim == 1 and np.issubdtype(array.dtype, np.integer)):
            raise DemonstrationError(f"{path}: {name}.npy is {array.dtype} {array.shape}, it must be integers [L]")
    return arrays
