"""A training run as every host but the first sees it: it does what it is told, together with all others.

Read `follow` beside `training_run.train`: the steps are the same, and in the same order.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import jax

from minestudio_jax.config import Config, ConfigError, environments_deadline_s
from minestudio_jax.mesh_shape import fragments_per_iteration
from minestudio_jax.policies.make_policy import policy_to_train, pretrained_params
from minestudio_jax.run import last_words, ray_cluster
from minestudio_jax.run.command_line import EXIT_FAILURE, EXIT_USAGE
from minestudio_jax.run.conversation import HostFailure
from minestudio_jax.run.device_experience import make_collector
from minestudio_jax.run.host_messages import Begin, Iterate, Publish, Stop
from minestudio_jax.run.hosts import FollowerHost
from minestudio_jax.run.learner import make_trainer
from minestudio_jax.run.policy_transport import following_publication
from minestudio_jax.run.run_directory import last_checkpoint, sees_mark
from minestudio_jax.run.run_log import log_to
from minestudio_jax.run.shares import following_source
from minestudio_jax.run.stop_signal import StopSignal
from minestudio_jax.trainer.loader import LoadedBatch
from minestudio_jax.trainer.ppo_trainer import PPOTrainer
from minestudio_jax.utils.compilation_cache import use_compilation_cache
from minestudio_jax.utils.live_board import Board, HeartbeatLines
from minestudio_jax.utils.timing import Stopwatch

_WAIT_S = 0.25

log = logging.getLogger(__name__)


def follow(config: Config, host: FollowerHost, stop: StopSignal) -> int:
    """Takes part in a run that the first host conducts, until that ends it.

    Returns:
      Exit code: 0 after an orderly end, otherwise the first host's, or 1 if a host is gone.
    """
    board = HeartbeatLines(config.logger.heartbeat_s)
    code = EXIT_FAILURE
    told: Exception | None = None
    try:
        with ExitStack() as cleanup:
            try:
                _follow(config, host, stop, board, cleanup)
            except Exception as raised:
                # Before the clean-up: Ray, if it has gone with the first host, ends this process without a word.
                told = host.explained(raised)
                _tell(told, host, board)
                raise
        host.finish()
        code = 0
    except Exception as raised:
        error = told
        if error is None:
            error = host.explained(raised)
            _tell(error, host, board)
        if isinstance(error, HostFailure):
            code = error.code
            host.give_up(error)
        else:
            code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE
            host.fail(error, code)
            host.say_last(error)
            raise
    finally:
        host.close(code)
    return code


def _tell(error: Exception, host: FollowerHost, board: Board) -> None:
    """Says on the screen and in the log how a host's loss ended this one's part; what else fails has a traceback."""
    if isinstance(error, HostFailure):
        board.stage(f"host {host.index}: {error}")
        log.error("%s", error, exc_info=error)
        last_words.said()


def _follow(config: Config, host: FollowerHost, stop: StopSignal, board: Board, cleanup: ExitStack) -> None:
    run = config.run
    stopped = threading.Event()
    begin = host.next_order(2 * run.start_deadline_s + environments_deadline_s(config))
    assert isinstance(begin, Begin), begin
    directory = Path(run.dir)
    if not sees_mark(directory, begin.mark):
        raise ConfigError(
            f"run.dir={run.dir!r} is not the first host's directory: all hosts need a file system that they share"
        )
    log_file = directory / "logs" / f"host-{host.index}.log"
    log_to(log_file, config.logger.level, board, cleanup)
    with_it = ", and with it the Ray that this process had joined" if begin.ray_address else ""
    last_words.if_silent(
        f"it was killed, or {host.conversation.name(0)} is gone{with_it}; the same command continues from the last "
        "checkpoint",
        log_file,
    )
    cleanup.callback(last_words.said)
    if run.compilation_cache:
        use_compilation_cache(directory / "compiled")
    if begin.ray_address:
        ray_cluster.join_ray(begin.ray_address)
        cleanup.callback(ray_cluster.leave_ray)
        stop.install()  # Ray has taken SIGTERM, and SIGABRT
        host.prepare_last_words()
    policy, on_device = policy_to_train(config, begin.spec), config.rollout.mode == "device"
    needed = fragments_per_iteration(config.trainer, jax.device_count())
    pretrained = pretrained_params(config) if last_checkpoint(directory) is None else None
    host.ready(begin)

    board.stage(f"host {host.index} of {jax.process_count()} makes its part of the learner")
    publication = None if on_device else following_publication(config, directory)
    collector = make_collector(config, policy, needed) if on_device else None
    trainer = make_trainer(config, policy, begin.spec, directory, publication, collector, pretrained)
    cleanup.callback(trainer.close)
    trainer.compile()

    publish = host.next_order(run.start_deadline_s + environments_deadline_s(config) + run.stall_deadline_s)
    assert isinstance(publish, Publish), publish
    host.ready(publish)
    trainer.publish()
    if not on_device:
        # Whatever the first host asks for is read at once: it asks for no more than its own settings say.
        trainer.open(following_source(host.conversation, stopped), config.trainer.prefetch_iterations + 1)
    board.stage(f"host {host.index} learns")
    watch = Stopwatch()
    while True:
        order = host.next_order(2 * run.stall_deadline_s)
        if isinstance(order, Stop):
            break
        assert isinstance(order, Iterate), order
        assert order.iteration == trainer.counters.iteration, (order, trainer.counters)
        if trainer.collects:
            host.ready(order)
            loaded = _next_batch(trainer, host, run.stall_deadline_s)
        else:
            loaded = _next_batch(trainer, host, run.stall_deadline_s)
            host.ready(order)
        trainer.iterate(loaded, watch)
        progress = host.progress()
        trainer.set_progress(progress.env_steps, progress.wall_time_s, progress.return_mean, progress.publish)
        trainer.checkpoint(watch)
    host.ready(order)
    trainer.checkpoint(watch, force=True)
    saved = trainer.flush_checkpoint()
    trainer.publish_the_last(run.stop_deadline_s)
    stopped.set()
    what = "its part of the checkpoint" if saved == trainer.counters.iteration else "no new checkpoint"
    board.stage(f"host {host.index} has written {what} after {order.reason}")


def _next_batch(trainer: PPOTrainer, host: FollowerHost, deadline_s: float) -> LoadedBatch:
    """This host's share of the next iteration's data, which it has read already, or is about to stack."""
    give_up = time.monotonic() + deadline_s
    while time.monotonic() < give_up:
        loaded = trainer.wait_for_batch(_WAIT_S)
        if loaded is not None:
            return loaded
        host.raise_failure()
    raise TimeoutError(f"host {host.index} could not stack its share within run.stall_deadline_s={deadline_s:g}")
