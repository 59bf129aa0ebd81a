"""A moment that concerns everybody: the roll is called, and gossip comes level, so that nothing is left half swapped.

Nothing here decides what the moment is for, or what is done about those who did not come.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

from lightning_decgan.gossip.gossiper import Gossiper
from lightning_decgan.gossip.membership import Membership
from lightning_decgan.gossip.mender import Mender

__all__ = ["confirm", "meet"]

_LOOK_SECONDS = 0.002


def meet(
    name: str,
    membership: Membership,
    mender: Mender,
    gossiper: Gossiper,
    timeout: timedelta,
    patience: timedelta,
) -> tuple[dist.Store, tuple[int, ...]]:
    """Wait for all members, and begin gossips until everybody has begun equally many.

    Args:
        name: of the meeting; the same on all members, and used once.
        membership: who is there.
        mender: a graph that is being knit anew is waited for.
        gossiper: goes on while others come, and is level with theirs afterwards.
        timeout: who neither comes nor answers after it is given up.
        patience: who answers but does not come after it is an error.

    Returns:
        A store hosted by the lowest member, who must not end before the others have used it, and the members: the same
        on all that return.

    Raises:
        TimeoutError: a member that answers did not come, or the graph could not be mended.
    """
    with ThreadPoolExecutor(1, "roll call") as caller:
        roll = caller.submit(membership.gather, name, timeout, patience)
        gossiper.keep_company(until=roll.done)
    store, members = roll.result()
    mender.wait_until_mended(patience)
    worker, neighborhood = membership.worker, gossiper.exchange.neighborhood
    store.set(f"begun/{worker}", "{} {}".format(*neighborhood.newest))
    _wait_for_keys(store, "begun", members, membership, timeout)
    newest = (0, 0)
    for member in members:
        if store.check([f"begun/{member}"]):  # else it has died since it came
            generation, number = store.get(f"begun/{member}").split()
            newest = max(newest, (int(generation), int(number)))
    _leave_together(store, members, membership, timeout)
    gossiper.catch_up(newest)
    return store, members


def confirm(
    name: str, membership: Membership, timeout: timedelta, patience: timedelta
) -> tuple[dist.Store, tuple[int, ...]]:
    """Learn, together with everybody who is left, who is left: after something that all members had to do.

    Whoever returns knows that each of the members it is given has come so far too. Arguments, result and errors are
    those of `meet`.
    """
    store, members = membership.gather(name, timeout, patience)
    _leave_together(store, members, membership, timeout)
    return store, members


def _leave_together(store: dist.Store, members: tuple[int, ...], membership: Membership, timeout: timedelta) -> None:
    """Nobody needs the store's host any more: it may have nothing left to do, and must not end while others read."""
    store.set(f"read/{membership.worker}", "")
    if membership.worker == members[0]:
        _wait_for_keys(store, "read", members, membership, timeout)


def _wait_for_keys(
    store: dist.Store, name: str, members: tuple[int, ...], membership: Membership, timeout: timedelta
) -> None:
    """Wait until each member has set its key, or is no more; whoever is late and does not answer is given up."""
    missing, asked = set(members), time.monotonic()
    while missing := {m for m in missing & set(membership.members) if not store.check([f"{name}/{m}"])}:
        if time.monotonic() - asked > timeout.total_seconds():
            for member in missing - {membership.worker}:
                if membership.ask(member) is None:
                    membership.report_worker(member, "silent", membership.step)
            asked = time.monotonic()
        time.sleep(_LOOK_SECONDS)
