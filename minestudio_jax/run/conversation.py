"""A conversation between hosts, beside what their devices exchange: who is gone is known in a moment, whatever the
main threads are waiting for.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from minestudio_jax.run import last_words
from minestudio_jax.run.command_line import EXIT_FAILURE
from minestudio_jax.run.host_messages import Beat, Bye, Farewell, Introduction, StopWanted

_BEAT_S = 1.0
_NOTICE_S = 5.0  # for the main thread to hear of a failure; then it hangs where nothing wakes it
SILENCE_S = 30.0  # after which a host is given up whose connection stands

log = logging.getLogger(__name__)

M = TypeVar("M")


class HostFailure(RuntimeError):
    """A host is gone, or ended the run; the message says which and why.

    Attributes:
      code: exit code.
    """

    def __init__(self, sentence: str, code: int = EXIT_FAILURE) -> None:
        super().__init__(sentence)
        self.code = code


class Conversation:
    """This host's connections to others. Threads hear what comes, say that this host is alive, and watch the silence.

    Args:
      peers: whom each connection leads to.
      stop_wanted: called with who wants it and a signal's name, when another host was told to stop.
      my_stop: name of the signal that told this host to stop, or "".
      end_deadline_s: seconds that this process has to end in good order after a host's loss. Then it is ended; so it is
        sooner if the thread that made this, the one that the devices' work is begun from, hears nothing of the loss:
        it waits for the lost host in a way that nothing else ends.
    """

    def __init__(
        self,
        peers: Mapping[int, tuple[Introduction, Connection]],
        stop_wanted: Callable[[str], None],
        my_stop: Callable[[], str],
        end_deadline_s: float,
    ) -> None:
        self._peers = {peer: introduction for peer, (introduction, _) in peers.items()}
        self._connections = {peer: connection for peer, (_, connection) in peers.items()}
        self._stop_wanted, self._my_stop, self._end_deadline_s = stop_wanted, my_stop, end_deadline_s
        self._sending = {peer: threading.Lock() for peer in peers}
        self._heard_at = dict.fromkeys(peers, time.monotonic())
        self._inbox: dict[tuple[int, type], collections.deque[Any]] = collections.defaultdict(collections.deque)
        self._left: set[int] = set()
        self._parting = False
        self._news = threading.Condition()
        self._failure: HostFailure | None = None
        self._owner = threading.get_ident()
        self._noticed, self._closed = threading.Event(), threading.Event()
        for peer in peers:
            self._start(f"hearing-host-{peer}", functools.partial(self._listen, peer))
        if peers:
            self._start("host-beat", self._beat)
            self._start("host-watch", self._watch)

    @property
    def peers(self) -> list[int]:
        """Indices of the other hosts of the conversation."""
        return list(self._peers)

    @property
    def failure(self) -> HostFailure | None:
        """Why the run cannot go on; None if it can."""
        return self._failure

    def say(self, message: Any, peer: int | None = None) -> None:
        """Sends a message to one host, or to all. One that is gone does not get it: that is told by `hear`."""
        self._parting |= isinstance(message, Farewell)
        for whom in self._connections if peer is None else (peer,):
            # The threads that listen and watch tell of a broken connection.
            with contextlib.suppress(OSError), self._sending[whom]:
                self._connections[whom].send(message)

    def hear(self, kind: type[M], peer: int, timeout_s: float) -> M | None:
        """The next message of that kind from that host; None if there was none in time.

        Raises:
          HostFailure: some host is gone or ended the run.
        """
        with self._news:
            inbox = self._inbox[peer, kind]
            self._news.wait_for(lambda: inbox or self._failure, timeout_s)
            if self._failure is not None:
                self._notice()
                raise self._failure
            return inbox.popleft() if inbox else None

    def name(self, peer: int) -> str:
        """Which host that is, in words."""
        return str(self._peers[peer])

    def wait_for_byes(self, timeout_s: float) -> bool:
        """Waits until every other host has said Bye, or is gone after a farewell; False if one has not in time."""
        with self._news:
            return self._news.wait_for(lambda: self._left >= self._peers.keys(), timeout_s)

    def explanation(self, timeout_s: float) -> HostFailure | None:
        """Whether another host's end may explain an error; the news of it may be `timeout_s` behind."""
        with self._news:
            self._news.wait_for(lambda: self._failure is not None, timeout_s)
            self._notice()
            return self._failure

    def close(self) -> None:
        """Says and hears nothing more; this process may live on."""
        self._closed.set()
        self._noticed.set()
        for peer, connection in self._connections.items():
            with self._sending[peer]:
                connection.close()

    def _start(self, name: str, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    def _listen(self, peer: int) -> None:
        connection = self._connections[peer]
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                if self._parting:
                    self._leaves(peer)
                elif not self._closed.is_set() and peer not in self._left:
                    self._fail(HostFailure(f"{self.name(peer)} is gone: its connection broke; its log may say why"))
                return
            self._heard_at[peer] = time.monotonic()
            if isinstance(message, StopWanted):
                self._stop_wanted(f"{message.name} at {self.name(peer)}")
            elif isinstance(message, Farewell):
                words = f"{self.name(peer)} ended the run: {message.reason}"
                self._fail(HostFailure(words, message.code), told=True)
            elif isinstance(message, Bye):
                self._leaves(peer)
            elif not isinstance(message, Beat):
                with self._news:
                    self._inbox[peer, type(message)].append(message)
                    self._news.notify_all()

    def _beat(self) -> None:
        told = False
        while not self._closed.wait(_BEAT_S):
            self.say(Beat())
            if self._my_stop() and not told:
                told = True
                self.say(StopWanted(self._my_stop()))

    def _watch(self) -> None:
        """Never says anything: who does not hear may not be waited for here."""
        while not self._closed.wait(_BEAT_S):
            for peer, heard_at in self._heard_at.items():
                if peer not in self._left and time.monotonic() - heard_at > SILENCE_S:
                    self._fail(
                        HostFailure(f"{self.name(peer)} has not been heard of for {SILENCE_S:g} s: it is given up")
                    )

    def _notice(self) -> None:
        if threading.get_ident() == self._owner:
            self._noticed.set()

    def _leaves(self, peer: int) -> None:
        with self._news:
            self._left.add(peer)
            self._news.notify_all()

    def _fail(self, failure: HostFailure, told: bool = False) -> None:
        with self._news:
            if self._failure is not None:
                return
            self._failure = failure
            self._news.notify_all()
        self._start("end-of-host", functools.partial(self._end_in_time, failure))
        if not told:  # by a thread of its own: who does not hear is not waited for
            self._start("farewell", lambda: self.say(Farewell(str(failure), failure.code)))

    def _end_in_time(self, failure: HostFailure) -> None:
        if self._noticed.wait(_NOTICE_S) and self._closed.wait(self._end_deadline_s):
            return
        frame = sys._current_frames().get(self._owner)
        log.error("what this process was doing:\n%s", "".join(traceback.format_stack(frame)))
        end_at_once(str(failure), failure.code)


def end_at_once(sentence: str, code: int = EXIT_FAILURE) -> None:
    """Ends this process and all below it, whatever they wait for; says a last sentence on stderr and in the log."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"train: {sentence}\n".encode())
    log.error("%s", sentence)
    last_words.said()
    for process in psutil.Process().children(recursive=True):  # a private Ray, whose agents would stay for minutes
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(code)
