"""From the processes of a run, one a host, to hosts that know of each other and agree on everything."""

from __future__ import annotations

import hmac
import importlib.metadata
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from minestudio_jax import __version__
from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run import last_words
from minestudio_jax.run.command_line import EXIT_USAGE
from minestudio_jax.run.control_files import whereabouts
from minestudio_jax.run.conversation import end_at_once
from minestudio_jax.run.host_messages import Introduction

_DIFFERENT = {("trainer", "host_index")}  # settings that may differ between hosts
_SAME_VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ray")
_TRY_S = 3.0  # for one address of the first host
_KEY_BYTES = 32
_LETTER_BYTES = 4096

Peers = dict[int, tuple[Introduction, Connection]]

log = logging.getLogger(__name__)


def join(config: Config) -> Peers:
    """Joins this process with those of the other hosts, as trainer.launcher says; before anything else uses JAX.

    Returns:
      Connections: of the first host to every other one, of another one to the first host, index 0; none if there is
      one host.
    Raises:
      ConfigError: they did not come together in time, or are not as many as promised, or not with as many devices.
    """
    if config.trainer.launcher == "none":
        return {}
    if config.trainer.launcher == "external":
        _join_devices(config)
    if fault := _device_fault(config):
        leave(config)  # all hosts find the same
        raise ConfigError(fault)
    if jax.process_count() == 1:
        return {}
    deadline = time.monotonic() + config.run.start_deadline_s
    return _meet(_introduction(config), deadline)


def leave(config: Config) -> None:
    """Leaves JAX's coordinator, together with all other hosts; where Ray has joined them, Ray does."""
    if config.trainer.launcher == "external":
        jax.distributed.shutdown()


def _join_devices(config: Config) -> None:
    trainer, deadline_s = config.trainer, int(config.run.start_deadline_s)
    # It would take over SIGTERM, which is this program's own affair.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {} if not trainer.coordinator else {
        "coordinator_address": trainer.coordinator, "num_processes": trainer.num_hosts,
        "process_id": trainer.host_index, "cluster_detection_method": "deactivate",
    }  # fmt: skip
    how = f"at trainer.coordinator={trainer.coordinator!r}" if given else "by what JAX finds out by itself"
    failure = (
        f"the hosts did not join {how} within run.start_deadline_s={deadline_s}: is the command running on every host, "
        "with the same trainer.coordinator and trainer.num_hosts, and can they reach the first one? Where JAX finds "
        "nothing out, give these two and trainer.host_index"
    )
    # Late hosts are no exception to JAX, but a reason to abort the process.
    last_words.before_abort(lambda: end_at_once(f"error: {failure}", EXIT_USAGE))
    try:
        jax.distributed.initialize(**given, initialization_timeout=deadline_s, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{failure} ({error})") from error


def _device_fault(config: Config) -> str:
    """What is wrong with the processes and devices that there are; "" if nothing is."""
    hosts, promised = jax.process_count(), config.trainer.num_hosts
    if promised and hosts != promised:
        return (
            f"trainer.num_hosts={promised}, but {hosts} processes have joined: start as many as that, or correct the "
            "setting"
        )
    counts = [0] * hosts
    for device in jax.devices():
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        return f"the hosts have {', '.join(map(str, counts))} devices: all must have as many as the others"
    return ""


def _introduction(config: Config) -> Introduction:
    where = whereabouts()
    settings = {
        f"{section}.{key}": value
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if (section, key) not in _DIFFERENT
    }
    versions = {"minestudio_jax": __version__} | {name: importlib.metadata.version(name) for name in _SAME_VERSIONS}
    return Introduction(jax.process_index(), where["host"], os.getpid(), where["pid_space"], settings, versions)


def _meet(me: Introduction, deadline: float) -> Peers:
    """Connects every host with the first one, whose address and a key to it they are told through their devices."""
    if me.host == 0:
        with socket.create_server(("", 0)) as server:
            key = secrets.token_bytes(_KEY_BYTES)
            _broadcast({"addresses": _own_addresses(), "port": server.getsockname()[1], "key": key.hex()})
            return _received(server, key, me, deadline)
    letter = _broadcast({})
    return {0: _called(letter["addresses"], letter["port"], bytes.fromhex(letter["key"]), me, deadline)}


def _broadcast(letter: Mapping[str, Any]) -> Any:
    """The first host's letter."""
    page = np.zeros(_LETTER_BYTES, np.uint8)
    text = json.dumps(letter).encode()
    page[: len(text)] = np.frombuffer(text, np.uint8)
    page = np.asarray(multihost_utils.broadcast_one_to_all(page), np.uint8)
    return json.loads(page.tobytes().rstrip(b"\0"))


def _own_addresses() -> list[str]:
    """By which others may reach this machine, itself last."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return sorted(set(found), key=lambda address: address.startswith("127."))[:32]


def _received(server: socket.socket, key: bytes, me: Introduction, deadline: float) -> Peers:
    """Waits for all others; whoever does not know the key is none of them."""
    peers: Peers = {}
    while len(peers) < jax.process_count() - 1:
        missing = sorted(set(range(1, jax.process_count())) - peers.keys())
        server.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            connected, _ = server.accept()
        except TimeoutError:
            raise ConfigError(
                f"the hosts {missing} joined JAX, but did not connect to the first one at port "
                f"{server.getsockname()[1]} within run.start_deadline_s: does a firewall keep them from it?"
            ) from None
        connection = Connection(_without_delay(connected).detach())
        try:
            if connection.poll(_TRY_S) and hmac.compare_digest(connection.recv_bytes(_KEY_BYTES), key):
                connection.send_bytes(_proof(key))
                connection.send(me)
                if connection.poll(_TRY_S):
                    introduction: Introduction = connection.recv()
                    peers[introduction.host] = (introduction, connection)
                    continue
        except (EOFError, OSError) as error:
            log.info("a caller was not understood: %s", error)
        connection.close()
    return peers


def _called(
    addresses: list[str], port: int, key: bytes, me: Introduction, deadline: float
) -> tuple[Introduction, Connection]:
    failure: object = "no answer"
    while time.monotonic() < deadline:
        for address in addresses:
            try:
                connected = socket.create_connection((address, port), _TRY_S)
                connected.settimeout(None)
                connection = Connection(_without_delay(connected).detach())
                connection.send_bytes(key)
                if connection.poll(_TRY_S) and hmac.compare_digest(connection.recv_bytes(_KEY_BYTES), _proof(key)):
                    first: Introduction = connection.recv()
                    connection.send(me)
                    return first, connection
                connection.close()
            except (EOFError, OSError) as error:
                failure = error
        time.sleep(0.2)
    raise ConfigError(
        f"host {me.host} joined JAX, but the first host did not answer at {' or '.join(addresses)}, port {port}, "
        f"within run.start_deadline_s ({failure}): does a firewall keep this host from it?"
    )


def _proof(key: bytes) -> bytes:
    """What only the first host answers to the key, by which a caller knows it from whatever else is at an address."""
    return hmac.digest(key, b"first host", "sha256")


def _without_delay(connected: socket.socket) -> socket.socket:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def check_agreement(config: Config, peers: Peers) -> None:
    """Refuses what differs between hosts, before anything is started.

    Raises:
      ConfigError: with everything that differs.
    """
    if not peers:
        return
    mine = _introduction(config)
    faults = []
    for other, _ in peers.values():
        for what, here, there in (
            ("the setting", mine.settings, other.settings), ("the version of", mine.versions, other.versions),
        ):  # fmt: skip
            faults += [
                f"{what} {name} is {here.get(name)!r} on the first host and {there.get(name)!r} on {other}"
                for name in here
                if here.get(name) != there.get(name)
            ]
    machines = {mine.machine, *(other.machine for other, _ in peers.values())}
    alone = config.trainer.launcher == "external" and not config.run.ray_address
    if config.rollout.mode == "ray" and alone and len(machines) > 1:
        faults.append(
            "run.ray_address is empty, so Ray would run on the first host's machine alone, where the others cannot "
            "read fragments: start a cluster over all machines ('ray start') and give its address"
        )
    if faults:
        raise ConfigError("; ".join(faults) + ": all hosts must agree")
