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

__all__ = ["meet"]

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
    _wait_for_keys(store, "begun", members, membership)
    newest = (0, 0)
    for member in members:
        if store.check([f"begun/{member}"]):  # else it has died since it came
            generation, number = store.get(f"begun/{member}").split()
            newest = max(newest, (int(generation), int(number)))
    store.set(f"read/{worker}", "")
    if worker == members[0]:
        # The store ends with its host, who may have nothing left to do and must not leave while others read.
        _wait_for_keys(store, "read", members, membership)
    gossiper.catch_up(newest)
    return store, members


def _wait_for_keys(store: dist.Store, name: str, members: tuple[int, ...], membership: Membership) -> None:
    """Wait until each member has set its key, or is no more."""
    missing = set(members)
    while missing := {m for m in missing & set(membership.members) if not store.check([f"{name}/{m}"])}:
        time.sleep(_LOOK_SECONDS)
