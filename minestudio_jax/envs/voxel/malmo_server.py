"""Serves a game through Malmo's protocol, so that clients of MineRL 1.0 and of MineStudio play it as if it were theirs.

One game, one player: a second client is told that Minecraft is busy until the first has gone. It does not import JAX.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from minestudio_jax.envs.minecraft import Keys
from minestudio_jax.envs.voxel import malmo_protocol as protocol
from minestudio_jax.envs.voxel.malmo_protocol import Mission, ProtocolError

FAULTS = ("none", "stall", "error", "die_mid_frame", "slow_start", "garbage")
FRAME_SIZE = (360, 640)  # pixels, of a mission that asks for none
_YES, _BUSY = protocol.number(1), protocol.number(0)
_POLL_S = 0.1
_BUSY_S = 2.0  # in which the last client's farewell may still be on its way
_END_S = 2.0


class Tick(NamedTuple):
    """What a game tells after a tick.

    Attributes:
      frame: uint8 [H, W, 3], top row first, of the size of the mission.
      reward: of the tick.
      done: the mission is over.
      info: all that Minecraft's info may hold; the mission chooses from it.
    """

    frame: np.ndarray
    reward: float
    done: bool
    info: dict[str, Any]


class Game(Protocol):
    """What is served."""

    def reset(self, seed: int, mission: Mission) -> Tick:
        """A new world and its first frame; the mission's size is never None.

        Raises:
          ProtocolError: the game does not have what the mission asks for.
        """
        ...

    def step(self, keys: Keys) -> Tick:
        """A tick with these keys, see `malmo_protocol.parse_step`."""
        ...


@dataclass(frozen=True)
class Fault:
    """What goes wrong, to try how a client takes it.

    Attributes:
      kind: "stall": no reply any more, to anybody. "error": the connection is closed in place of a reply, which MineRL
        reports as info["error"] with an invented observation. "die_mid_frame": half of a frame, then the process is
        dead. "garbage": a frame that is one byte short. "slow_start": missions begin late. "none".
      after: so many steps of all missions go well before; all but "slow_start" strike in the one that follows.
      seconds: by which "slow_start" is late.
    """

    kind: str = "none"
    after: int = 0
    seconds: float = 0.0


class MalmoServer:
    """Listens from the moment it is made until it is closed.

    Args:
      game: what is played.
      port: to listen on; 0: any that is free.
      host: address to listen on.
      frame_size: of missions that ask for none, height and width in pixels.
      fault: what is to go wrong.
    Attributes:
      port: that it listens on.
    Raises:
      OSError: the port is taken.
    """

    def __init__(
        self,
        game: Game,
        port: int = 0,
        host: str = "127.0.0.1",
        frame_size: tuple[int, int] = FRAME_SIZE,
        fault: Fault | None = None,
    ) -> None:
        self._game, self._frame_size, self._fault = game, frame_size, fault or Fault()
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(_POLL_S)
        self.port: int = self._listener.getsockname()[1]
        self._stopping, self._stalled = threading.Event(), threading.Event()
        self._peers: dict[threading.Thread, socket.socket] = {}
        self._turn = threading.Condition()
        self._player: socket.socket | None = None  # whose mission it is; only he touches what follows
        self._mission: Mission | None = None
        self._last: Tick | None = None
        self._steps, self._ticks = 0, 0  # of all missions, of this one

    def __enter__(self) -> MalmoServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def serve(self) -> None:
        """Takes clients until `stop`, each in a thread of its own."""
        while not self._stopping.is_set():
            try:
                peer, address = self._listener.accept()
            except TimeoutError:
                continue
            peer.settimeout(None)  # a client thinks as long as it likes; `close` ends the wait
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers = {thread: of for thread, of in self._peers.items() if thread.is_alive()}
            name = f"client {address[0]}:{address[1]}"
            thread = threading.Thread(target=self._serve_peer, args=(peer,), name=name, daemon=True)
            self._peers[thread] = peer
            thread.start()

    def stop(self) -> None:
        """Has `serve` return; may be called from everywhere."""
        self._stopping.set()

    def close(self) -> None:
        """Ends all connections; harmless if called twice."""
        self.stop()
        self._listener.close()
        peers = dict(self._peers)
        for peer in peers.values():
            with suppress(OSError):  # it has gone already
                peer.shutdown(socket.SHUT_RDWR)
        for thread in peers:
            thread.join(_END_S)
            if thread.is_alive():
                logging.warning("%s: its game did not come to an end within %g s", thread.name, _END_S)

    def _serve_peer(self, peer: socket.socket) -> None:
        name = threading.current_thread().name
        try:
            with _ignoring_lost():
                self._converse(peer)
        except ProtocolError as error:
            logging.error("%s: %s; its connection is closed", name, error)
        finally:
            self._leave(peer)
            peer.close()

    def _converse(self, peer: socket.socket) -> None:
        """Answers until the client goes.

        Raises:
          ProtocolError: it says what cannot be understood.
          OSError: the connection is lost.
        """
        hello = protocol.receive(peer)
        if hello is not None and not hello.startswith(b"<MalmoEnv"):
            raise ProtocolError(f"{hello[:60]!r} came where <MalmoEnv...> was expected")
        while hello and (data := protocol.receive(peer)) is not None:
            if self._stalled.is_set():
                self._stopping.wait()
                return
            message = data.decode(errors="replace")
            if message.startswith("<StepClient"):
                if not self._step(peer, message):
                    return
            elif message.startswith("<Peek"):
                self._peek(peer)
            elif message.startswith("<MissionInit"):
                token = protocol.receive(peer) or b""
                protocol.send(peer, _YES if self._begin(peer, message, token.decode(errors="replace")) else _BUSY)
            elif message.startswith("<Quit"):
                self._leave(peer)
                protocol.send(peer, _YES)
            elif message.startswith("<Find"):
                protocol.send(peer, protocol.number(self.port))
            elif message.startswith("<Echo"):
                protocol.send(peer, b"<Echo>" + data + b"</Echo>")
            elif message.startswith("<Exit"):
                logging.info("%s ends the server", threading.current_thread().name)
                protocol.send(peer, _YES)
                self.stop()
                return
            elif message.startswith("<Disconnect"):
                return
            elif not message.startswith(("<StepServer", "<Close")):  # these have no reply and no meaning here
                raise ProtocolError(f"there is no message {message[:60]!r}")

    def _begin(self, peer: socket.socket, xml: str, token: str) -> bool:
        """Begins a mission; False while somebody else's goes on."""
        mission = protocol.parse_mission(xml, token)
        with self._turn:
            if not self._turn.wait_for(lambda: self._player in (None, peer), _BUSY_S):
                return False
            self._player = peer
        seed = secrets.randbits(31) if mission.seed is None else mission.seed
        size = mission.size or self._frame_size
        mission = dataclasses.replace(mission, seed=seed, size=size)
        logging.info("mission %s: seed %d, %d x %d pixels", mission.uid, seed, size[1], size[0])
        if self._fault.kind == "slow_start":
            self._stopping.wait(self._fault.seconds)
        self._mission, self._ticks, self._last = mission, 0, self._game.reset(seed, mission)
        return True

    def _leave(self, peer: socket.socket) -> None:
        """The client's mission, if it has one, is over."""
        with self._turn:
            if self._player is peer:
                self._player = self._mission = self._last = None
                self._turn.notify_all()

    def _playing(self, peer: socket.socket) -> tuple[Mission, Tick]:
        if self._player is not peer or self._mission is None or self._last is None:
            raise ProtocolError("it plays before its mission has begun")
        return self._mission, self._last

    def _peek(self, peer: socket.socket) -> None:
        mission, tick = self._playing(peer)
        frame, info = protocol.bottom_row_first(tick.frame), protocol.asked_for(tick.info, mission)
        protocol.send(peer, frame, json.dumps(info).encode(), bytes([tick.done]))

    def _step(self, peer: socket.socket, message: str) -> bool:
        """A tick and its reply; False if the connection is to be closed."""
        mission, _ = self._playing(peer)
        keys, with_info = protocol.parse_step(message)
        fault = self._fault.kind if self._steps == self._fault.after else "none"
        self._steps += 1
        if fault in ("stall", "error"):
            logging.warning("fault %s", fault)
            if fault == "stall":
                self._stalled.set()
                self._stopping.wait()
            return False
        tick = self._game.step(keys)
        self._ticks += 1
        time_is_up = bool(mission.time_limit) and self._ticks >= mission.time_limit
        self._last = tick = tick._replace(done=tick.done or time_is_up)
        frame = protocol.bottom_row_first(tick.frame)
        if fault == "die_mid_frame":
            logging.warning("fault %s", fault)
            peer.sendall(protocol.number(len(frame)) + frame[: len(frame) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        info = [json.dumps(protocol.asked_for(tick.info, mission)).encode()] if with_info else []
        protocol.send(
            peer, frame[:-1] if fault == "garbage" else frame, protocol.outcome(tick.reward, tick.done), *info
        )
        return True


@contextmanager
def _ignoring_lost() -> Iterator[None]:
    """What a client's going breaks off is no error here: the next one connects anew."""
    try:
        yield
    except OSError as error:
        logging.info("%s: the connection is lost: %s", threading.current_thread().name, error)
