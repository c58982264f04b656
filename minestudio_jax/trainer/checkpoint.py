"""Checkpoints of a run through Orbax: train state and counters, atomic, verified when read, with retention."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation
from orbax.checkpoint.options import MultiprocessingOptions

from minestudio_jax.config import TrainerConfig
from minestudio_jax.trainer import global_arrays, manifest
from minestudio_jax.trainer.state import Counters, TrainState

_SCORE = "return_mean"
_DAMAGED = ".damaged"
_ORBAX_SCORE = "metrics/metrics"  # where Orbax stores it in a checkpoint
_SAY_SLOW_AFTER_S = 30.0  # that somebody waits for a checkpoint, and again after as long

log = logging.getLogger(__name__)


class CheckpointFailure(RuntimeError):
    """A checkpoint could not be written, or there are some and none can be read; says where and why."""


class Checkpointer:
    """Saves and restores (TrainState, Counters), one step per finished iteration count.

    A save is complete or invisible: Orbax writes under another name and renames. Before that it is given a manifest, by
    which it is verified when it is read; what is damaged is passed over for an older one. With several hosts all of
    them call everything here, in the same order and from their main threads, and each writes what lies on its devices;
    the first one writes manifests and verifies.

    Args:
      directory: of all checkpoints of the run.
      config: save_interval, keep_interval, keep_last, keep_best.

    Attributes:
      saved: iteration of the newest checkpoint, which may still be being written, or be damaged as long as it has not
        been read; None if there is none.
    """

    def __init__(self, directory: Path, config: TrainerConfig) -> None:
        self._interval = config.save_interval
        directory.mkdir(parents=True, exist_ok=True)
        if _first_host():
            _set_unreadable_scores_aside(directory)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(
                    [
                        preservation.LatestN(config.keep_last),
                        preservation.EveryNSteps(config.keep_interval),
                        preservation.BestN(
                            get_metric_fn=_score, n=config.keep_best, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=_score,  # without it Orbax stores no metrics
                create=False,  # Orbax would refuse that with several hosts
                cleanup_tmp_directories=True,  # of saves that were killed; the first host does it
                single_host_load_and_broadcast=True,  # others' file systems may show late what the first has renamed
                temporary_path_class=manifest.PathWithManifest,
                enable_async_checkpointing=jax.process_count() > 1,
                # Else the publisher's files would wait for this one's directories, and for ever if they are late.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
                multiprocessing_options=_all_hosts(),
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "counters": ocp.JsonCheckpointHandler()},
        )
        self.saved = self._manager.latest_step()
        # One at a time: Orbax keeps the save under way in variables of the process.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def due(self, iteration: int) -> bool:
        """Whether the interval asks for a checkpoint after this many finished iterations."""
        return iteration % self._interval == 0

    def save(self, state: TrainState, counters: Counters, score: float | None = None) -> None:
        """Writes a checkpoint; the arrays are copied before this returns, the writing goes on behind it.

        Args:
          state, counters: what is saved.
          score: by which the best checkpoints are found, the higher the better; None: it is none of them.
        Raises:
          CheckpointFailure: this save failed, or the one before it.
        """
        if counters.iteration == self.saved:
            return
        self.flush()
        if jax.process_count() > 1:
            self._write(_as_dict(state), counters, score)  # Orbax copies to the hosts and writes behind it
        else:
            # A host copy: the state's buffers are donated to the next update while Orbax still writes.
            self._writing = self._writer.submit(self._write, _as_dict(jax.device_get(state)), counters, score)
        self.saved = counters.iteration

    def flush(self) -> None:
        """Waits until everything is written, however long the disk takes: who waits long is told, and decides.

        Raises:
          CheckpointFailure: writing failed.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            while not wait([writing], _SAY_SLOW_AFTER_S).done:
                log.warning(
                    "the checkpoint of iteration %s is still being written to %s: is its disk slow, or gone? Killing "
                    "this process loses only this checkpoint",
                    self.saved,
                    self._manager.directory,
                )
            writing.result()
        with self._failure_told():
            self._manager.wait_until_finished()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Counters] | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        Newer ones that are damaged keep their files under another name: as long as Orbax sees them, it saves nothing of
        their iterations and those before.

        Args:
          abstract: jax.ShapeDtypeStructs with shardings; where the arrays are to lie.
        Returns:
          State and counters. A reference or a rollout that is not wanted is left out. One that is wanted is None if no
          reference was saved, or no rollout of these shapes, of which a warning says why.
        Raises:
          ValueError: it does not fit the settings.
          CheckpointFailure: there are checkpoints, and none is whole.
        """
        flaws: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, abstract, verified=self._verify(step))
            except manifest.Damaged as damage:
                flaws[step] = str(damage)
                continue
            self._set_aside(flaws)
            self.saved = step
            return restored
        if flaws:
            raise CheckpointFailure(
                f"none of the checkpoints in {self._manager.directory} is whole: "
                + "; ".join(f"{step}: {flaw}" for step, flaw in flaws.items())
                + "; put one back from a copy, or give --run.restart=true to start over"
            )
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        try:
            self.flush()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def _verify(self, step: int) -> bool:
        """Whether a checkpoint is whole as far as its manifest says; False if it is older than manifests are.

        Raises:
          Damaged: it is not whole.
        """
        verified, damage = True, None
        if _first_host():
            try:
                verified = manifest.verify(self._folder(step))
            except manifest.Damaged as error:
                damage = error
        if jax.process_count() > 1:  # all go on with the same one
            told = multihost_utils.broadcast_one_to_all(np.array([verified, damage is not None], np.int32))
            verified = bool(told[0])
            if told[1] and damage is None:
                damage = manifest.Damaged("the first host's log says what is wrong")
        if damage is not None:
            raise damage
        if not verified:
            log.warning(
                "the checkpoint of iteration %d in %s has no %s, as it was written by an older version of "
                "minestudio_jax: it is read, but whether it is what was written cannot be told",
                step, self._manager.directory, manifest.NAME,
            )  # fmt: skip
        return verified

    def _read(self, step: int, abstract: TrainState, verified: bool) -> tuple[TrainState, Counters]:
        """One checkpoint; see `restore`.

        Raises:
          ValueError: it does not fit the settings.
          Damaged: it cannot be read, and was not verified.
        """
        with self._damage_told(step, verified):
            arrays = dict(self._manager.item_metadata(step)["state"])
        stored = {name: tuple(array.shape) for name, array in arrays.items()}
        wanted = abstract
        if not _part(stored, "reference"):
            wanted = dataclasses.replace(wanted, reference=None)
        misfit = _misfit(_part(stored, "rollout"), _part(_shapes(wanted), "rollout"))
        if misfit is not None:
            wanted = dataclasses.replace(wanted, rollout=None)
        left_out = [part for part in ("reference", "rollout") if getattr(wanted, part) is None]
        self._check_fit(step, {name: s for name, s in stored.items() if name.split(".")[0] not in left_out}, wanted)
        if misfit is not None and abstract.rollout is not None:
            log.warning(
                "worlds begin anew, as the checkpoint of iteration %d was written with another number of devices or "
                "environments, other settings of them, or another rollout.mode: %s", step, misfit,
            )  # fmt: skip
        leaves = _as_dict(wanted)
        with self._damage_told(step, verified):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        leaves, restore_args=ocp.checkpoint_utils.construct_restore_args(leaves), partial_restore=True
                    ),
                    counters=ocp.args.JsonRestore(),
                ),
            )
            return _from_dict(restored["state"], wanted), Counters(**restored["counters"])

    def _set_aside(self, flaws: dict[int, str]) -> None:
        """Renames checkpoints that are damaged, so that their iterations can be saved again."""
        for step, flaw in flaws.items():
            aside = _free(self._folder(step).with_name(f"{step}{_DAMAGED}"))
            if _first_host():
                self._folder(step).rename(aside)
            log.warning(
                "the checkpoint of iteration %d in %s is damaged and passed over: %s; its files are kept in %s",
                step, self._manager.directory, flaw, aside.name,
            )  # fmt: skip
        if flaws:
            self._manager.reload()

    def _folder(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step)

    def _check_fit(self, step: int, stored: dict[str, tuple[int, ...]], wanted: TrainState) -> None:
        misfit = _misfit(stored, _shapes(wanted))
        if misfit is not None:
            raise ValueError(
                f"the checkpoint of iteration {step} in {self._manager.directory} does not fit the present "
                f"policy or optimiser settings: {misfit}; use the settings and the version of minestudio_jax it was "
                "made with, or give --run.restart=true to start over"
            )

    def _write(self, state: dict[str, Any], counters: Counters, score: float | None) -> None:
        with self._failure_told():
            begun = self._manager.save(
                counters.iteration,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    counters=ocp.args.JsonSave(dataclasses.asdict(counters)),
                ),
                metrics={} if score is None else {_SCORE: score},
                custom_metadata=manifest.MARK,
            )
            if not begun:
                raise FileExistsError(f"there is one of iteration {self._manager.latest_step()} already")

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointFailure(
                f"writing a checkpoint to {self._manager.directory} failed: {error}; is the disk full or read-only?"
            ) from error

    @contextlib.contextmanager
    def _damage_told(self, step: int, verified: bool) -> Iterator[None]:
        """What was not verified may fail in any way while it is read: that is damage then, and not a bug."""
        try:
            yield
        except Exception as error:
            if verified or isinstance(error, jax.errors.JaxRuntimeError):  # such as no memory on a device
                raise
            reason = f"it cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:300]})"
            if jax.process_count() > 1:  # others may be able to, and have no way to learn of this
                raise CheckpointFailure(
                    f"the checkpoint of iteration {step} in {self._manager.directory} has no {manifest.NAME}, and "
                    f"{reason}: move its folder away, and the same command continues from the one before"
                ) from error
            raise manifest.Damaged(reason) from error


def _first_host() -> bool:
    return jax.process_index() == 0


def _free(path: Path) -> Path:
    """A path that nothing lies at: this one, or with a number behind it."""
    count, free = 1, path
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}-{count}")
    return free


def _set_unreadable_scores_aside(directory: Path) -> None:
    """Has Orbax see no score where it would fail for one that it cannot read, in whichever of the checkpoints."""
    for path in directory.glob(f"*/{_ORBAX_SCORE}"):
        try:
            readable = isinstance(json.loads(path.read_bytes()), dict)
        except (OSError, ValueError):
            readable = False
        if not readable and path.relative_to(directory).parts[0].isdigit():
            path.rename(_free(path.with_name(path.name + _DAMAGED)))
            log.warning("%s cannot be read: that checkpoint no longer counts as one of the best", path)


def _all_hosts() -> MultiprocessingOptions:
    """Hosts wait for one another through their coordinator, with a deadline, instead of through their devices."""
    several = jax.process_count() > 1
    return MultiprocessingOptions(active_processes=set(range(jax.process_count())) if several else None)


def _score(metrics: dict[str, float]) -> float:
    return metrics.get(_SCORE, -math.inf)


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Leaves by their path: Orbax stores plain dictionaries best, and the names survive a change of containers.

    Arrays without elements, which Orbax does not store, are left out.
    """
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.size}


def _from_dict(leaves: dict[str, Any], like: TrainState) -> TrainState:
    def leaf(path: Any, wanted: Any) -> Any:
        if wanted.size:
            return leaves[_name(path)]
        return global_arrays.from_whole(np.zeros(wanted.shape, wanted.dtype), wanted.sharding)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in _as_dict(state).items()}


def _part(shapes: dict[str, tuple[int, ...]], field: str) -> dict[str, tuple[int, ...]]:
    """Those of one field of TrainState."""
    return {name: shape for name, shape in shapes.items() if name.split(".")[0] == field}


def _misfit(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str | None:
    """The first array that is not stored as it is wanted, in words; None if all are."""
    for name in sorted(stored.keys() | wanted.keys()):
        there, expected = stored.get(name, "missing"), wanted.get(name, "nothing")
        if there != expected:
            return f"{name} is {there}, expected {expected}"
    return None


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
