"""A training run from start to stop: the conductor's one subject.

Read `train` top to bottom: everything a run does, in order. With several hosts this is the story of the first one; that
of the others is in `following_host`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import ExitStack

import jax

from minestudio_jax.config import Config, ConfigError, task_shares
from minestudio_jax.envs.env import EnvironmentFailure
from minestudio_jax.mesh_shape import batch_shards, fragments_per_iteration
from minestudio_jax.policies.make_policy import policy_to_train, pretrained_params
from minestudio_jax.rollout.environments import check_rewards, embedded_spec
from minestudio_jax.rollout.rollout_manager import SIGNAL_GRACE_S, RolloutFailure
from minestudio_jax.run import joining, last_words
from minestudio_jax.run.command_line import EXIT_FAILURE, EXIT_USAGE
from minestudio_jax.run.control_desk import ControlDesk
from minestudio_jax.run.conversation import HostFailure
from minestudio_jax.run.devices import use_cpu_devices
from minestudio_jax.run.experience import Experience, check_experience, make_experience
from minestudio_jax.run.following_host import follow
from minestudio_jax.run.host_messages import Begin, Iterate, Progress, Stop
from minestudio_jax.run.hosts import FollowerHost, LeadHost
from minestudio_jax.run.learner import make_trainer
from minestudio_jax.run.rollout_statistics import RolloutStatistics
from minestudio_jax.run.run_directory import RunDirectory
from minestudio_jax.run.run_log import log_to
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.bad_updates import LearningFailure
from minestudio_jax.trainer.checkpoint import CheckpointFailure
from minestudio_jax.trainer.loader import LoadedBatch
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.trainer.publisher import PublishFailure
from minestudio_jax.utils.compilation_cache import use_compilation_cache
from minestudio_jax.utils.live_board import Board, make_board
from minestudio_jax.utils.metric_log import MetricLog
from minestudio_jax.utils.metrics import first_records, last_records, rewind
from minestudio_jax.utils.sinks import sink_factories
from minestudio_jax.utils.timing import Stopwatch

# Failures that are the run's, not the program's: their sentence says all.
_TOLD = (RolloutFailure, EnvironmentFailure, LearningFailure, CheckpointFailure, PublishFailure, HostFailure)

_WAIT_S = 0.25  # how often the waiting learner looks at the stop signal
_SAY_WAITING_AFTER_S = 2.0

log = logging.getLogger(__name__)


def train(config: Config) -> int:
    """Trains until the last iteration, the time limit, or SIGINT or SIGTERM.

    Returns:
      Exit code: 0 after an orderly end, 1 if the experience side or a host failed (the run can be continued).
    Raises:
      ConfigError: a setting turned out wrong; nothing is left running.
    """
    started = time.monotonic()
    stop = StopSignal()
    stop.install()
    use_cpu_devices(config)
    peers = joining.join(config)
    if 0 in peers:
        return follow(config, FollowerHost(config, peers, stop), stop)
    host = LeadHost(config, peers, stop)
    code = EXIT_FAILURE
    try:
        host.agree()
        code = _conduct(config, host, stop, started)
    except BaseException as error:
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE
        host.part(error, code)
        host.say_last(error)
        raise
    finally:
        host.close(code)
    return code


def _conduct(config: Config, host: LeadHost, stop: StopSignal, started: float) -> int:
    """The run, as the first host sees it; see `train`."""
    auxiliary = AuxiliaryLosses(config.trainer, batch_shards(config.trainer, jax.device_count()))
    if not config.env.factory:
        _checked_embedded_world(config, auxiliary)
    check_experience(config, jax.device_count())
    sink_factories(config.logger.sinks)
    needed = fragments_per_iteration(config.trainer, jax.device_count())

    with ExitStack() as cleanup:
        directory = RunDirectory(config)
        cleanup.callback(directory.close)
        board = make_board(config.logger.board, config.logger.heartbeat_s, str(directory.path))
        cleanup.callback(board.close)
        if config.run.compilation_cache:
            use_compilation_cache(directory.compiled)
        log_to(directory.logs / "run.log", config.logger.level, board, cleanup)
        last_words.if_silent(
            "it was killed, which the kernel's log tells of if memory ran out, or a library ended it; the same command "
            "continues from the last checkpoint",
            directory.logs / "run.log",
        )
        cleanup.callback(last_words.said)
        desk = cleanup.enter_context(ControlDesk(directory.path, stop))
        for change in directory.changed_settings:
            board.stage(f"setting changed since the last start: {change}")
        try:
            return _run(config, directory, board, desk, host, stop, needed, started)
        except Exception as raised:
            error = host.explained(raised)
            if not isinstance(error, _TOLD):
                raise
            desk.failed(str(error))
            log.error("%s", error, exc_info=error)
            board.stage(f"failed: {error}")
            board.stage(f"the same command continues from the last checkpoint; logs are in {directory.logs}")
            return EXIT_FAILURE


def _run(
    config: Config,
    directory: RunDirectory,
    board: Board,
    desk: ControlDesk,
    host: LeadHost,
    stop: StopSignal,
    needed: int,
    started: float,
) -> int:
    """Starts both sides, loops, and stops them whatever happens."""
    # Before anything is started: the file may be the wrong one.
    pretrained = pretrained_params(config) if directory.last_checkpoint is None else None
    with ExitStack() as files, ExitStack() as cleanup:  # files stay open until all who write to them have stopped
        experience = make_experience(config, directory, board, stop, needed, host)
        spec = experience.start(cleanup)
        # Before Ray is stopped, which other hosts read from.
        cleanup.push(lambda kind, error, traceback: host.part(error, EXIT_FAILURE if error else 0))
        cleanup.callback(experience.raise_failure)
        if spec is None:
            return 0
        if host.others:
            host.together(Begin(directory.mark(), experience.ray_address, spec))
        desk.connect(experience)
        cleanup.callback(desk.disconnect)
        board.stage("building the policy and looking for a checkpoint")
        policy = policy_to_train(config, spec)
        publication, collector = experience.publication(policy, cleanup), experience.collector(policy)
        trainer = make_trainer(config, policy, spec, directory.path, publication, collector, pretrained)
        cleanup.callback(trainer.close)
        counters = trainer.counters
        if trainer.resumed:
            board.stage(f"continuing after iteration {counters.iteration}, {counters.env_steps:,} env steps")
        _rewind_logs(directory, counters.iteration)
        statistics = RolloutStatistics(directory.episodes, task_shares(config.env), lambda: trainer.counters)
        files.callback(statistics.close)
        board.stage(f"compiling the update of {trainer.num_parameters:,} parameters")
        board.stage(f"compiled: {trainer.compile()}")
        if not experience.connect(trainer, statistics):
            return 0
        board.stage(f"collecting the first {needed} fragments of {config.rollout.fragment_length} steps")
        factories = sink_factories(config.logger.sinks)
        metrics_log = MetricLog(directory.metrics, factories, directory.path, config.to_dict())
        cleanup.callback(metrics_log.close)
        _loop(config, trainer, experience, statistics, metrics_log, board, desk, host, stop, started)
        host.together(Stop(stop.name or "the end"))
        # Before anything is stopped: whatever happens then, this much is safe.
        trainer.checkpoint(Stopwatch(), force=True)
        saved = trainer.flush_checkpoint()
        trainer.publish_the_last(config.run.stop_deadline_s)
        reason = stop.name or "the end"
        if saved == trainer.counters.iteration:
            board.stage(f"stopping after {reason}: checkpoint of iteration {saved} written")
        else:
            board.stage(f"stopping after {reason}: no new checkpoint")
    board.stage(_summary(directory))
    return 0


def _loop(
    config: Config,
    trainer: PPOTrainer,
    experience: Experience,
    statistics: RolloutStatistics,
    metrics_log: MetricLog,
    board: Board,
    desk: ControlDesk,
    host: LeadHost,
    stop: StopSignal,
    started: float,
) -> None:
    """Fetch, update, publish, checkpoint, log; until it is time to stop."""
    before = trainer.counters
    metrics: dict[str, float] = {}
    while trainer.counters.iteration < config.trainer.num_iterations:
        if config.run.time_limit_s and time.monotonic() - started > config.run.time_limit_s:
            stop.request("run.time_limit_s")
            return
        watch = Stopwatch()
        iteration_started = time.monotonic()
        with watch.phase("wait"):
            loaded = _next_batch(config, trainer, experience, metrics, board, host, stop)
        if loaded is None:
            return
        last = trainer.counters
        learned = trainer.iterate(loaded, watch)
        experience.observe(trainer, statistics)
        progress = (
            before.env_steps + experience.steps,
            before.wall_time_s + time.monotonic() - started,
            statistics.return_mean(),
            trainer.may_publish or config.rollout.synchronous,
        )
        host.tell(Progress(*progress))
        trainer.set_progress(*progress)
        trainer.checkpoint(watch)
        experience.proceed(trainer)
        now = trainer.counters
        seconds = time.monotonic() - iteration_started
        metrics = {
            **dataclasses.asdict(now),
            **statistics.drain(),
            **learned,
            "speed/env_steps_per_s": (now.env_steps - last.env_steps) / seconds,
            "speed/trained_steps_per_s": loaded.steps / seconds,
            **experience.metrics(),
            "logger/dropped_records": float(metrics_log.dropped_records),
            **{f"time/{phase}_s": value for phase, value in watch.drain().items()},
        }
        metrics_log.write(metrics)
        desk.observe(metrics)
        if now.iteration == before.iteration + 1:
            board.stage(f"first update finished {time.monotonic() - started:.1f} s after the start")
        board.update(metrics)


def _next_batch(
    config: Config,
    trainer: PPOTrainer,
    experience: Experience,
    metrics: dict[str, float],
    board: Board,
    host: LeadHost,
    stop: StopSignal,
) -> LoadedBatch | None:
    """The next iteration's data, once all hosts have theirs; None if it is time to stop.

    Raises:
      RolloutFailure: nothing came within run.stall_deadline_s; says what the buffer holds.
    """
    order = Iterate(trainer.counters.iteration)
    if trainer.collects and not stop.event.is_set():
        host.together(order)  # to collect is something that the devices do together already
        return trainer.wait_for_batch(_WAIT_S)
    began = time.monotonic()
    while not stop.event.is_set():
        host.raise_failure()
        try:
            loaded = trainer.wait_for_batch(_WAIT_S)
        except RolloutFailure:
            # A signal sent to every process of a job may have reached Ray before this one.
            if stop.event.wait(SIGNAL_GRACE_S):
                return None
            raise
        if loaded is not None:
            host.together(order)
            return loaded
        waited = time.monotonic() - began
        if waited > config.run.stall_deadline_s:
            raise RolloutFailure(
                f"no batch of experience within run.stall_deadline_s={config.run.stall_deadline_s:g}: "
                f"{experience.diagnosis()}, or raise the deadline"
            )
        if waited > _SAY_WAITING_AFTER_S:
            board.update(metrics, waiting_for="experience from the environments")
    return None


def _checked_embedded_world(config: Config, auxiliary: AuxiliaryLosses) -> None:
    """Raises ConfigError if the embedded world or what has to do with it cannot be built from the settings."""
    try:
        check_rewards(config)
        spec = embedded_spec(config)
        policy_to_train(config, spec)
        auxiliary.check(spec)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _rewind_logs(directory: RunDirectory, iteration: int) -> None:
    """Takes back what was logged after the checkpoint, so that no counter ever goes back."""
    rewind(directory.metrics, "iteration", iteration, directory.logs / "metrics-not-continued.jsonl")
    rewind(directory.episodes, "iteration", iteration, directory.logs / "episodes-not-continued.jsonl")


def _summary(directory: RunDirectory) -> str:
    """First and last 20 episodes of the run in one sentence."""
    beginning, end = first_records(directory.episodes, 40), last_records(directory.episodes, 20)
    if len(beginning) < 40:
        return f"{len(beginning)} episodes in all; everything is in {directory.path}"
    first, last = (sum(record["return"] for record in records) / 20 for records in (beginning[:20], end))
    return (
        f"mean return of the first 20 episodes {first:.2f}, of the last 20 {last:.2f}; "
        f"everything is in {directory.path}"
    )
