"""The hosts of a run: the first one conducts, and every other one does what it is told, when all are ready for it.

Nothing that the hosts' devices do together is begun before every host is ready for it, so slow environments, disks or
compilations never look like a lost host.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TypeVar

import jax

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run import joining, last_words
from minestudio_jax.run.conversation import Conversation, HostFailure, end_at_once
from minestudio_jax.run.host_messages import Bye, Farewell, Go, Order, Prepare, Progress, Ready, Stop
from minestudio_jax.run.stop_signal import StopSignal

_BYE_DEADLINE_S = 30.0  # for the other hosts to end what they do, once the run has ended
_EXPLANATION_S = 3.0  # an error of the devices may come before the news that a host is gone

_ABORTED = "it was aborted from native code, as JAX does where hosts have lost one another; the same command continues"

log = logging.getLogger(__name__)

M = TypeVar("M")


class Host:
    """What the first host and the others have in common.

    Args:
      config: the run's settings.
      peers: of `joining.join`.
      stop: of this process.
    """

    def __init__(self, config: Config, peers: joining.Peers, stop: StopSignal) -> None:
        self._config = config
        self._peers, self._several = peers, bool(peers)
        self.index = jax.process_index() if peers else 0
        self.conversation = Conversation(
            peers,
            stop.request,
            lambda: stop.name if self.index and stop.event.is_set() else "",
            config.run.stop_deadline_s,
        )
        self._left_together = not peers
        self.prepare_last_words()

    def prepare_last_words(self) -> None:
        """Has this process say why, should JAX abort it; call it again after a library has taken over SIGABRT."""
        if self._config.trainer.launcher != "none":
            last_words.before_abort(lambda: end_at_once(str(self.conversation.failure or _ABORTED)))

    def explained(self, error: Exception) -> Exception:
        """The loss of a host, if that is what has led to an error; the error itself otherwise."""
        if not self._several:
            return error
        known = isinstance(error, HostFailure)
        found = self.conversation.explanation(0.0 if known else _EXPLANATION_S)
        return error if known or found is None else found

    def raise_failure(self) -> None:
        """Raises what ended another host, if one has ended."""
        if self.conversation.failure is not None:
            self.conversation.explanation(0.0)  # so that it counts as noticed
            raise self.conversation.failure

    def say_last(self, error: BaseException) -> None:
        """Says why this process ends, if `close` will not leave that to Python."""
        if not self._ends_here:
            return
        if isinstance(error, ConfigError):
            print(f"train: error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)

    def close(self, code: int) -> None:
        """Ends the conversation, and the process too if hosts have not left JAX's coordinator together.

        There JAX would wait for them in vain and then abort the process. In one of Ray's processes Ray ends it.
        """
        self.conversation.close()
        if self._ends_here:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            logging.shutdown()
            os._exit(code)

    @property
    def _ends_here(self) -> bool:
        return not self._left_together and self._config.trainer.launcher == "external"

    def _leave(self) -> None:
        joining.leave(self._config)
        self._left_together = True


class LeadHost(Host):
    """The first host's side, and that of the only one, which has nobody to tell anything."""

    def __init__(self, config: Config, peers: joining.Peers, stop: StopSignal) -> None:
        super().__init__(config, peers, stop)
        self._stopping = self._parted = False

    @property
    def others(self) -> Sequence[int]:
        """Indices of the other hosts."""
        return self.conversation.peers

    def agree(self) -> None:
        """Raises ConfigError if the hosts do not agree on settings, versions or machines."""
        joining.check_agreement(self._config, self._peers)

    def together(self, order: Order) -> None:
        """Tells the other hosts what is done next and waits until they are ready for it; then all do it.

        Raises:
          HostFailure: a host is gone, or was not ready within run.stall_deadline_s.
        """
        deadline_s = self._config.run.stall_deadline_s
        self.conversation.say(Prepare(order))
        for peer in self.others:
            ready = self.conversation.hear(Ready, peer, deadline_s)
            if ready is None:
                raise HostFailure(
                    f"{self.conversation.name(peer)} was not ready for {type(order).__name__} within "
                    f"run.stall_deadline_s={deadline_s:g}: its log says what it does"
                )
            assert ready.order == order, (ready, order)
        self.conversation.say(Go(order))
        self._stopping = isinstance(order, Stop)

    def tell(self, progress: Progress) -> None:
        """Tells the other hosts what this one counts."""
        self.conversation.say(progress)

    def part(self, error: BaseException | None = None, code: int = 0) -> None:
        """Ends the work of all hosts, before what they share is stopped. A second call does nothing.

        Args:
          error: why, if it is no orderly end.
          code: exit code of the others, unless they have been told to `Stop`.
        """
        if not self._several or self._parted:
            return
        self._parted = True
        if isinstance(error, Exception):
            error = self.explained(error)
        complete = self.conversation.failure is None
        stopping = self._stopping and error is None
        if not stopping:
            self.conversation.say(Farewell(str(error or "it was told to stop"), code))
        if not self.conversation.wait_for_byes(_BYE_DEADLINE_S if complete else _EXPLANATION_S):
            log.warning("not all hosts have ended their part")
        elif stopping:
            self.conversation.say(Bye())
            self._leave()
        self.conversation.close()


class FollowerHost(Host):
    """The side of every other host: it hears what is done next, and says when it is ready."""

    def next_order(self, deadline_s: float) -> Order:
        """What is done next, once `ready` has been called.

        Raises:
          HostFailure: the run ends, or nothing was said within `deadline_s`.
        """
        return self._heard(Prepare, deadline_s).order

    def ready(self, order: Order) -> None:
        """Says that this host is ready, and waits until all are.

        Raises:
          HostFailure: the run ends, or others were not ready within run.stall_deadline_s.
        """
        self.conversation.say(Ready(order))
        go = self._heard(Go, self._config.run.stall_deadline_s + _BYE_DEADLINE_S)
        assert go.order == order, (go, order)

    def progress(self) -> Progress:
        """What the first host counts, after an iteration.

        Raises:
          HostFailure: the run ends, or nothing was said within run.stall_deadline_s.
        """
        return self._heard(Progress, self._config.run.stall_deadline_s)

    def finish(self) -> None:
        """Says that this host has done its part, and leaves the others, for whom it may have to wait a moment."""
        self.conversation.say(Bye())
        self._leave()

    def give_up(self, failure: HostFailure) -> None:
        """Leaves a run that has failed; if nobody but this host has noticed, it says so."""
        heard = failure is self.conversation.failure
        self.conversation.say(Bye() if heard else Farewell(str(failure), failure.code))

    def fail(self, error: BaseException, code: int) -> None:
        """Tells the first host that this one cannot go on."""
        self.conversation.say(Farewell(str(error), code))

    def _heard(self, kind: type[M], deadline_s: float) -> M:
        message = self.conversation.hear(kind, 0, deadline_s)
        if message is None:
            raise HostFailure(
                f"{self.conversation.name(0)} said nothing of {kind.__name__} within {deadline_s:g} s, though it "
                "lives: its log says what it waits for"
            )
        return message
