"""PPOTrainer: one iteration after the other, fetch, update, publish, checkpoint, log."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from minestudio_jax.config import TrainerConfig
from minestudio_jax.envs.env import EnvironmentSpec
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer import global_arrays, sharding
from minestudio_jax.trainer.abstract import abstract_iteration, abstract_state, shardings_of
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.bad_updates import BadUpdates, LearningFailure
from minestudio_jax.trainer.checkpoint import Checkpointer
from minestudio_jax.trainer.cost import Cost, cost_of
from minestudio_jax.trainer.device_collector import DeviceCollector
from minestudio_jax.trainer.device_rollout import Ended
from minestudio_jax.trainer.loader import DirectLoader, FragmentLoader, FragmentSource, LoadedBatch
from minestudio_jax.trainer.publisher import ParamPublisher, Publication
from minestudio_jax.trainer.schedules import Coefficients, coefficients
from minestudio_jax.trainer.state import Counters, TrainState, initial_state
from minestudio_jax.trainer.update import jitted_update
from minestudio_jax.utils import policy_store
from minestudio_jax.utils.timing import Stopwatch

log = logging.getLogger(__name__)


class PPOTrainer:
    """The learner: owns the train state, its checkpoints and the published versions.

    With several hosts each has one, and all of them must be made, and told the same things in the same order: making
    it, `compile`, `publish`, `iterate`, `set_progress`, `checkpoint`. Of checkpoints each host writes what lies on its
    devices, and of policy versions as well if the first host does not have them whole.

    Args:
      config: the whole run's settings of the learner.
      policy: being trained.
      spec: of the environments.
      fragment_length: T.
      run_dir: `checkpoints/` and `versions/` are kept in it.
      seed: of parameters and shuffling, used by a run that has no checkpoint.
      publication: how policy versions are sent to rollout workers; None if there are none.
      collector: what it collects its experience with itself; None if fragments come from others.
      pretrained: parameters that a run without a checkpoint begins with; None: they are drawn.
      in_background: fragments are loaded and versions written by threads of their own.
    Raises:
      ValueError: the checkpoint there does not fit the settings.
      CheckpointFailure: there are checkpoints, and none is whole.
    """

    def __init__(
        self,
        config: TrainerConfig,
        policy: Policy,
        spec: EnvironmentSpec,
        fragment_length: int,
        run_dir: Path,
        seed: int,
        publication: Publication | None = None,
        collector: DeviceCollector | None = None,
        pretrained: Params | None = None,
        in_background: bool = True,
    ) -> None:
        self._config = config
        mesh = sharding.make_mesh(config)
        first_host = jax.process_index() == 0
        self._batch_sharding = sharding.along_batch(mesh)

        abstract = self._abstract = abstract_state(policy, config, mesh)
        shardings = shardings_of(abstract)
        if collector is not None:
            abstract = dataclasses.replace(abstract, rollout=collector.abstract())
        self._collector = collector
        self._checkpointer = Checkpointer(run_dir / "checkpoints", config)
        self._copied: Any = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        restored = self._restored(abstract)
        self.resumed = restored is not None
        state: TrainState
        if restored is None:
            if pretrained is not None:  # straight to where they will lie: no device need hold them all
                pretrained = global_arrays.from_whole(pretrained, shardings.params)
            # The key is an argument: runs of other seeds find this compiled. On CPUs most of the time goes into
            # compiling it, which with the first level of optimisation takes a third, while it runs as fast.
            quickly = {"xla_backend_optimization_level": 1}
            begin = jax.jit(
                partial(initial_state, policy, config),
                out_shardings=shardings,
                compiler_options=quickly if jax.default_backend() == "cpu" else None,
            )
            restored = begin(jax.random.key(seed), params=pretrained), Counters()
        state, self.counters = restored
        self._rollout = state.rollout
        if collector is not None and self._rollout is None:
            self._rollout = collector.begin(self.counters.iteration)
        self._state = dataclasses.replace(state, rollout=None)
        self.last_ended: Ended | None = None

        # A process that was killed may have published more than its last checkpoint knows of.
        if first_host:
            policy_store.remove_newer_versions(run_dir / "versions", self.counters.policy_version)
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        self._abstract_batch = abstract_iteration(policy, config, mesh, spec, fragment_length)
        self._auxiliary = AuxiliaryLosses(config, sharding.batch_shards(mesh))
        self._auxiliary.check(spec)
        self._auxiliary_sharding = sharding.along_batch(mesh, axis=2)  # behind epochs and steps
        self._seed = seed
        self._update: Any = jitted_update(policy, config, mesh, shardings, self._auxiliary)
        together = not global_arrays.first_host_has(abstract.params)
        self._publisher = ParamPublisher(run_dir / "versions", publication, in_background, together)
        bad_updates = "bad_updates.jsonl" if first_host else f"bad_updates-host-{jax.process_index()}.jsonl"
        self._bad_updates = BadUpdates(run_dir / "logs" / bad_updates, config.max_bad_updates)
        self._rolled_back = False
        self._score: float | None = None
        self._in_background = in_background
        self._loader: FragmentLoader | DirectLoader | None = None

    @property
    def collects(self) -> bool:
        """Whether it collects its experience itself; `wait_for_batch` then waits for nothing."""
        return self._collector is not None

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of a batch's leading axis."""
        return self._batch_sharding

    def compile(self) -> Cost:
        """Compiles the update ahead of the first batch, and the collection if it is the trainer's; what it costs."""
        if self._collector is not None:
            self._collector.compile(self._abstract.params)
        jitted, arguments = self._update, (self._abstract, self._abstract_batch)
        auxiliary_data = sharding.with_sharding(self._auxiliary.draw(self._seed, 0), self._auxiliary_sharding)
        self._update = jitted.lower(*arguments, Coefficients.abstract(), auxiliary_data).compile()
        return cost_of(jitted, self._update, *arguments, self._config, auxiliary_data)

    def publish(self) -> None:
        """Hands over the policy that the run begins or goes on with.

        That of a checkpoint keeps its number: a run that stops often counts like one that never did.
        """
        if not self.resumed:
            self._count_version()
        self._publisher.publish(self.counters.policy_version, self._state.params)
        self._publisher.write_together()

    def open(self, source: FragmentSource, ahead: int | None = None) -> None:
        """Begins to take fragments from `source`.

        Args:
          source: of this host's shares.
          ahead: iterations that may be asked for beyond the one that is waited for; None: as the settings say.
        """
        auxiliary_data = partial(next, map(self._auxiliary_data, itertools.count(self.counters.iteration)))
        config, sharding = self._config, self._batch_sharding
        ahead = config.prefetch_iterations if ahead is None else ahead
        if self._in_background:
            self._loader = FragmentLoader(source, sharding, ahead, config.task_weights, auxiliary_data)
        else:
            self._loader = DirectLoader(source, sharding, config.task_weights, auxiliary_data)

    @property
    def may_publish(self) -> bool:
        """Whether hosts that publish together may begin to write the newest version; see `ParamPublisher.is_free`."""
        return self._publisher.is_free

    def wait_for_batch(self, timeout_s: float) -> LoadedBatch | None:
        """The next iteration's data, or None if it is not there in time."""
        if self._collector is not None:
            return self._collect(self._collector)
        assert self._loader is not None, "open() comes first"
        return self._loader.next(timeout_s)

    def iterate(self, loaded: LoadedBatch, watch: Stopwatch) -> dict[str, float]:
        """One iteration on one batch.

        Args:
          loaded: its data.
          watch: takes the seconds of each phase.
        Returns:
          metric name -> value; NaN where there is nothing to say.
        Raises:
          LearningFailure: too many optimiser steps in a row were not finite, again or without a checkpoint.
        """
        version, iteration = self.counters.policy_version, self.counters.iteration
        with watch.phase("update"):
            now = coefficients(self._config, iteration, version)
            self._state, metrics, diagnosis = self._update(self._state, loaded.batch, now, loaded.auxiliary_data)
            # The iteration's one wait for the device.
            told = (metrics, global_arrays.readable(loaded.ended), diagnosis)
            numbers, self.last_ended, diagnosis = jax.device_get(told)
            metrics = {name: float(value) for name, value in numbers.items()}
        if self._bad_updates.observe(iteration, diagnosis, loaded.metadata):
            self._roll_back()
        self.counters = dataclasses.replace(
            self.counters,
            iteration=iteration + 1,
            trained_steps=self.counters.trained_steps + loaded.steps,
        )
        with watch.phase("publish"):
            self._hand_over()
        if self._config.reference_update == "interval" and (iteration + 1) % self._config.reference_interval == 0:
            self._renew_reference()
        if self._config.kl_reference_coef > 0:
            metrics["ppo/kl_reference_coef"] = float(now.kl_reference)
        metrics["ppo/learning_rate"] = float(now.learning_rate)
        return metrics

    def set_progress(self, env_steps: int, wall_time_s: float, return_mean: float, publish: bool) -> None:
        """Takes over what others count, so that it is in the checkpoint.

        Args:
          env_steps: see Counters.
          wall_time_s: see there.
          return_mean: of the last 20 episodes; NaN before there were so many.
          publish: whether hosts that publish together begin to write the newest version; otherwise a newer one will
            be published in its place. Of no meaning where the first host has all parameters.
        """
        best = self.counters.best_return
        self._score = None if math.isnan(return_mean) else return_mean
        if self._score is not None and (best is None or self._score > best):
            best = self._score
            self._publisher.keep_as_best(best)
            if self._config.reference_update == "best_return":
                self._renew_reference()
        self.counters = dataclasses.replace(
            self.counters, env_steps=env_steps, wall_time_s=wall_time_s, best_return=best
        )
        if publish:
            self._publisher.write_together()

    def checkpoint(self, watch: Stopwatch, force: bool = False) -> None:
        """Saves if the interval asks for it and updates do not fail, or if `force`d.

        Nor then if all steps of the last iteration were skipped: the parameters may be such that all later ones will
        be, and the newest checkpoint is the only one that is gone back to.
        """
        with watch.phase("checkpoint"):
            iteration = self.counters.iteration
            if force and self._bad_updates.none_taken:
                log.warning(
                    "iteration %d is not saved, as all of its optimiser steps were skipped: %s", iteration,
                    "there is no checkpoint yet" if self._checkpointer.saved is None else
                    f"the last checkpoint remains that of iteration {self._checkpointer.saved}",
                )  # fmt: skip
            elif force or (self._checkpointer.due(iteration) and not self._bad_updates.in_a_row):
                state = dataclasses.replace(self._state, rollout=self._rollout)
                self._checkpointer.save(state, self.counters, self._score)
                self._publisher.keep()
                self._publisher.write_together()

    def flush_checkpoint(self) -> int | None:
        """Waits until the checkpoint is written that was begun last, however long the disk takes.

        Returns:
          The iteration of the newest checkpoint; None if there is none.
        Raises:
          CheckpointFailure: it could not be written.
        """
        self._checkpointer.flush()
        return self._checkpointer.saved

    def flush_published(self, timeout_s: float) -> None:
        """Waits until the versions handed over are written.

        Raises:
          TimeoutError: it took longer than `timeout_s`.
        """
        if not self._publisher.flush(timeout_s):
            raise TimeoutError(f"policy version {self.counters.policy_version} was not written in {timeout_s} s")

    def publish_the_last(self, timeout_s: float) -> None:
        """The same at the end of a run, which may do without: the checkpoint has all that the next start needs."""
        try:
            self.flush_published(timeout_s)
        except TimeoutError as error:
            log.warning("%s: it is left out, as the run ends", error)

    def close(self) -> None:
        """Ends the threads; everything handed over is written first."""
        started = time.monotonic()
        if self._loader is not None:
            self._loader.close()
        self._publisher.close(max(1.0, 20.0 - (time.monotonic() - started)))
        self._checkpointer.close()

    def _hand_over(self) -> None:
        """The present parameters are the next version, to be published in place of an earlier one that still waits."""
        self._count_version()
        self._publisher.publish(self.counters.policy_version, self._state.params)

    def _count_version(self) -> None:
        self.counters = dataclasses.replace(self.counters, policy_version=self.counters.policy_version + 1)

    def _collect(self, collector: DeviceCollector) -> LoadedBatch:
        """Dispatches the collection of an iteration's data with the present parameters; does not wait for it."""
        self._rollout, batch, ended = collector.collect(self._state.params, self._rollout)
        version = np.full(batch.reward.shape, self.counters.policy_version, np.int32)
        batch = dataclasses.replace(batch, version=global_arrays.from_whole(version, self._batch_sharding))
        auxiliary_data = self._auxiliary_data(self.counters.iteration)
        return LoadedBatch(batch=batch, steps=collector.steps, auxiliary_data=auxiliary_data, ended=ended)

    def _auxiliary_data(self, iteration: int) -> Any:
        """What the auxiliary losses draw for one iteration, on the devices; every host draws the same."""
        return global_arrays.from_whole(self._auxiliary.draw(self._seed, iteration), self._auxiliary_sharding)

    def _restored(self, abstract: TrainState) -> tuple[TrainState, Counters] | None:
        """The newest whole checkpoint; its parameters are the reference if one is wanted, and it was saved without."""
        restored = self._checkpointer.restore(abstract)
        if restored is not None and restored[0].reference is None and abstract.reference is not None:
            state, counters = restored
            log.warning(
                "the policy of iteration %d is the reference: trainer.kl_reference_coef was 0 when its checkpoint was "
                "written, so that it has none",
                counters.iteration,
            )
            restored = dataclasses.replace(state, reference=self._copied(state.params)), counters
        return restored

    def _renew_reference(self) -> None:
        """The present policy becomes the one that it is held near."""
        self._state = dataclasses.replace(self._state, reference=self._copied(self._state.params))

    def _roll_back(self) -> None:
        """Takes up the parameters, optimiser and reference of the last checkpoint; everything else goes on."""
        what = (
            f"trainer.max_bad_updates={self._config.max_bad_updates} optimiser steps in a row had a loss or gradient "
            "that was not finite"
        )
        where = f"logs/{self._bad_updates.path.name} names the fragments"
        if self._rolled_back:
            raise LearningFailure(
                f"{what}, and going back to the last checkpoint did not help: {where}; lower trainer.learning_rate or "
                "trainer.max_grad_norm, or look for rewards that are not finite"
            )
        self._checkpointer.flush()
        restored = self._restored(self._abstract)
        if restored is None:
            raise LearningFailure(
                f"{what}, before there was a checkpoint to go back to: {where}; lower trainer.learning_rate, or look "
                "for rewards that are not finite"
            )
        state, counters = restored
        log.warning("%s: going back to the parameters of iteration %d; %s", what, counters.iteration, where)
        # Another order of the fragments than the one that has just failed.
        self._state = dataclasses.replace(state, key=self._state.key)
        self._rolled_back = True
        self._bad_updates.forget()
