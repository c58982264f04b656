"""Who reads what of an iteration's fragments: the first host leases them and tells every host its share."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
import ray
import ray.exceptions
from jax.sharding import NamedSharding

from minestudio_jax.rollout.fragment import FragmentId, FragmentMetadata, SampleFragment
from minestudio_jax.rollout.fragment_reading import read_fragments
from minestudio_jax.rollout.ray_failures import ACTOR_GONE
from minestudio_jax.rollout.replay_chunk import Entry
from minestudio_jax.rollout.replay_service import NAMESPACE
from minestudio_jax.rollout.rollout_manager import Lent, RolloutManager
from minestudio_jax.run.conversation import Conversation, HostFailure
from minestudio_jax.run.host_messages import Fetch, HaveRead, Load, Read
from minestudio_jax.trainer.batch import Share, run_order
from minestudio_jax.trainer.global_arrays import rows_of_hosts
from minestudio_jax.trainer.loader import FragmentSource

_LOOK_S = 0.5  # how often a waiting thread looks whether it should stop
_ENTRIES_DEADLINE_S = 30.0

log = logging.getLogger(__name__)


def leading_source(
    manager: RolloutManager,
    conversation: Conversation,
    needed: int,
    sharding: NamedSharding,
    deadline_s: float,
    stop: threading.Event,
) -> FragmentSource:
    """The first host's source of shares (`trainer.loader.FragmentSource`), which has all hosts read theirs.

    The batch is the same whatever the number of hosts: all fragments in `run_order`, of which each host has those rows
    that lie on its devices.

    Args:
      manager: that fragments are leased from.
      conversation: with the other hosts.
      needed: fragments an iteration.
      sharding: of the batch's leading axis.
      deadline_s: run.stall_deadline_s, seconds within which a host must have read its share.
      stop: set when nothing is waited for any more.
    """
    rows = rows_of_hosts(sharding, needed)
    number = 0

    def source(timeout_s: float, ahead: Callable[[], int]) -> Share | None:
        here: dict[FragmentId, SampleFragment] = {}
        share: Share | None = None

        def read(lent: Sequence[Lent]) -> Collection[FragmentId] | None:
            nonlocal number, share
            number += 1
            lent = sorted(lent, key=lambda one: run_order(one.entry.metadata))
            metadata = [one.entry.metadata for one in lent]
            for peer in conversation.peers:
                theirs = [(lent[row].buffer, lent[row].lease_id, metadata[row].id) for row in rows[peer]]
                conversation.say(Fetch(Read(number, theirs, rows[peer].tolist(), metadata)), peer)
            mine = [lent[row].entry for row in rows[0]]
            lost = set(_read(mine, here, stop, manager.is_gone))
            for peer in conversation.peers:
                answer = _answer(conversation, peer, deadline_s, stop)
                if answer is None:
                    return None
                assert answer.number == number, (answer, number)
                lost.update(answer.lost)
            if stop.is_set():
                return None
            if not lost:
                share = Share([here[entry.metadata.id] for entry in mine], rows[0], metadata)
                conversation.say(Fetch(Load(number)))
            return lost

        return share if manager.fetch_with_others(needed, timeout_s, ahead, read) else None

    return source


def _answer(conversation: Conversation, peer: int, deadline_s: float, stop: threading.Event) -> HaveRead | None:
    give_up = time.monotonic() + deadline_s
    while not stop.is_set():
        answer = conversation.hear(HaveRead, peer, _LOOK_S)
        if answer is not None:
            return answer
        if time.monotonic() > give_up:
            raise HostFailure(
                f"{conversation.name(peer)} has not read its share of the fragments within run.stall_deadline_s="
                f"{deadline_s:g}: its log says what it does"
            )
    return None


def following_source(conversation: Conversation, stop: threading.Event) -> FragmentSource:
    """Another host's source of shares, which reads what the first host tells it to.

    Args:
      conversation: with the first host.
      stop: set when nothing is waited for any more.
    """
    here: dict[FragmentId, SampleFragment] = {}
    asked: Read | None = None

    def source(timeout_s: float, ahead: Callable[[], int]) -> Share | None:
        nonlocal asked
        del ahead  # the first host knows
        while (fetch := conversation.hear(Fetch, 0, timeout_s)) is not None:
            if isinstance(fetch.step, Read):
                asked = fetch.step
                conversation.say(HaveRead(asked.number, _read_told(asked, here, stop)))
                continue
            assert asked is not None, fetch
            assert asked.number == fetch.step.number, (asked, fetch)
            share = Share([here[key] for _, _, key in asked.shares], np.array(asked.rows), asked.metadata)
            here.clear()
            return share
        return None

    return source


def _read_told(request: Read, here: dict[FragmentId, SampleFragment], stop: threading.Event) -> Sequence[FragmentId]:
    """Reads what `here` does not have yet; gives what could not be had."""
    lost: list[FragmentId] = []
    entries: list[Entry] = []
    wanted = [share for share in request.shares if share[2] not in here]
    for (buffer, lease_id), group in itertools.groupby(sorted(wanted), key=lambda share: share[:2]):
        ids = [share[2] for share in group]
        try:
            actor = ray.get_actor(buffer, NAMESPACE)
            entries += ray.get(actor.entries.remote(lease_id, ids), timeout=_ENTRIES_DEADLINE_S)
        except (ValueError, LookupError, *ACTOR_GONE, ray.exceptions.GetTimeoutError) as error:
            log.info("%d fragments of lease %s are lost with their buffer: %s", len(ids), lease_id, error)
            lost += ids
    return lost + _read(entries, here, stop)


def _read(
    entries: Sequence[Entry],
    here: dict[FragmentId, SampleFragment],
    stop: threading.Event,
    is_gone: Callable[[FragmentMetadata], bool] = lambda metadata: False,
) -> list[FragmentId]:
    """Reads what `here` does not have yet into it; gives what is lost."""
    missing = [entry for entry in entries if entry.metadata.id not in here]
    there, lost = read_fragments(missing, stop.is_set, stop, is_gone)
    here.update((fragment.metadata.id, fragment) for fragment in there)
    return lost
