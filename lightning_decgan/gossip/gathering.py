r"""How those who are still there agree on who they are, and get a store of their own: `Membership.gather`.

An attempt is named by a key, the SHA-256 of the gathering's name and of the set S of members that it is for. The
lowest member of S is its host; the others ask the host's door again and again how it stands.

    1. arrive    every member of S tells the host that it has come with exactly this S. Whoever's own view changes is
                 free to go, and begins again with the new set.
    2. confirm   once all have arrived, each connects to the host's store and then confirms: from here on it takes the
                 host's word alone, even when it learns of another loss.
    3. outcome   once all have confirmed, the host commits: it and everybody who asks returns S. If one of S is lost
                 before that, the host aborts the attempt for good, and everybody begins again.

If the host itself is lost after a member has confirmed, that member asks everybody else of S: one who has returned
says so, and then this one returns S as well (the store is dead; its first use fails, as it does for the other);
whoever has not returned promises, by answering, that it never will. So of two members that live on, never one returns
with A and the other with B, as long as deaths are what is lost. The limits: no protocol can decide when the host
and everyone who heard it commit die in the same instant that a third one was told; and whoever dies after the outcome
is in the group all the same. Either way the group's first collective fails, and the caller gathers again under
another name. Where the network falls in two, each side gathers its own.

Members whose views differ (the one who noticed a loss died while telling it) tell one another what they know while
they wait, so that their views become the union of all. This module never decides what a loss means for training.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from lightning_decgan.gossip.wire import Address, Kind, Message

if TYPE_CHECKING:
    from lightning_decgan.gossip.membership import Membership

__all__ = ["Desk", "Gathering", "serve_store"]

_log = logging.getLogger(__name__)

# States of an attempt as they travel. UNKNOWN: the host has not come to it (yet).
_UNKNOWN, _WAITING, _READY, _COMMITTED, _ABORTED = range(5)
_POLL_SECONDS, _RETELL_SECONDS = 0.02, 0.25


@dataclass
class _Attempt:
    """What this worker knows of one attempt; only its host counts who has come."""

    members: tuple[int, ...] = ()
    arrived: set[int] = field(default_factory=set)
    confirmed: set[int] = field(default_factory=set)
    port: int = 0
    outcome: int = _UNKNOWN  # then _COMMITTED or _ABORTED

    @property
    def missing(self) -> list[int]:
        """Who has not come, or, when all have, who has not confirmed."""
        return sorted(set(self.members) - self.arrived) or sorted(set(self.members) - self.confirmed)

    @property
    def state(self) -> int:
        if self.outcome != _UNKNOWN:
            return self.outcome
        if not self.port:
            return _UNKNOWN
        return _READY if self.arrived.issuperset(self.members) else _WAITING


class Desk:
    """Keeps this worker's attempts and answers the others' questions about them, on the door's thread.

    Args:
        worker: whose desk this is.
        changed: the lock of the attempts, notified when somebody arrives or confirms.
    """

    def __init__(self, worker: int, changed: threading.Condition) -> None:
        self._worker, self._changed = worker, changed
        self._attempts: dict[bytes, _Attempt] = {}

    def enter(self, key: bytes, members: tuple[int, ...]) -> _Attempt:
        """The attempt of this key, from now on known here."""
        with self._changed:
            attempt = self._attempts.setdefault(key, _Attempt())
            attempt.members = members
            return attempt

    def answer(self, message: Message) -> Message:
        """The reply to ARRIVE, CONFIRM or OUTCOME."""
        with self._changed:
            if message.kind is Kind.OUTCOME:
                attempt = self._attempts.setdefault(message.key, _Attempt())
                if attempt.outcome == _UNKNOWN:
                    attempt.outcome = _ABORTED  # a promise: from now on this worker cannot return from it
            else:
                attempt = self._attempts.get(message.key, _Attempt())
                if attempt.outcome == _UNKNOWN and attempt.port and message.worker in attempt.members:
                    attempt.arrived.add(message.worker)
                    if message.kind is Kind.CONFIRM:
                        attempt.confirmed.add(message.worker)
            self._changed.notify_all()
            missing = attempt.missing
            return Message(
                Kind.STATE, self._worker, missing[0] if missing else -1, attempt.state, attempt.port, message.key
            )

    def decide(self, attempt: _Attempt, outcome: int) -> bool:
        """Settle an attempt here; whether it is settled that way now (it may have been settled before)."""
        with self._changed:
            if attempt.outcome == _UNKNOWN:
                attempt.outcome = outcome
            return attempt.outcome == outcome


class Gathering:
    """One call of `Membership.gather`.

    Args:
        membership: whose members gather.
        desk: where this worker's attempts are kept.
        name: names the gathering, the same on all members; never used before.
        timeout: how long a member may stay away without answering.
        patience: how long one that answers may hold up the others.
        needed: whether there is still something to meet for.
    """

    def __init__(
        self,
        membership: Membership,
        desk: Desk,
        name: str,
        timeout: timedelta,
        patience: timedelta,
        needed: Callable[[], bool],
    ) -> None:
        self._membership, self._desk, self._name, self._needed = membership, desk, name, needed
        self._seconds, self._patience_seconds = timeout.total_seconds(), patience.total_seconds()
        self._deadline = time.monotonic() + self._patience_seconds
        self._missing: list[int] = []
        self._told = time.monotonic()

    def run(self) -> tuple[dist.Store, tuple[int, ...]] | None:
        """Attempt after attempt, until one is committed, or nobody needs one any more."""
        while self._needed():
            members = self._view()
            host = members[0] == self._membership.worker
            store = self._host(members) if host else self._attend(members)
            if store is not None:
                return store, members
        return None

    def _view(self) -> tuple[int, ...]:
        """The members by now; raises when this worker has no business here any more, or its patience is at an end."""
        self._membership.check()
        if time.monotonic() > self._deadline:
            named = f"worker {self._missing[0]}" if len(self._missing) == 1 else f"workers {self._missing}"
            raise TimeoutError(
                f"gathering '{self._name}': {named} did not come within {self._patience_seconds:g} s, but"
                " answered: every member must gather at the same points of its run"
            )
        return self._membership.members

    def _key(self, members: tuple[int, ...]) -> bytes:
        return hashlib.sha256(f"{self._name}\n{members}".encode()).digest()

    def _host(self, members: tuple[int, ...]) -> dist.Store | None:
        """One attempt as its host; `None`: it was aborted."""
        membership, desk, key = self._membership, self._desk, self._key(members)
        attempt = desk.enter(key, members)
        port = membership.store_port()
        self._missing = [membership.worker]
        while (store := self._connect(key, membership.worker, port)) is None:
            if self._view() != members:  # which raises when its patience is at an end: a busy machine gets another try
                return None
        with membership.changed:
            attempt.port = port
            for count in (attempt.arrived, attempt.confirmed):
                count.add(membership.worker)
        press = time.monotonic() + self._seconds
        try:
            while True:
                with membership.changed:
                    # Views only shrink, and under this lock: nobody is lost between the comparison and the commitment.
                    if self._view() != members or attempt.outcome == _ABORTED or not self._needed():
                        break
                    self._missing = attempt.missing
                    if not self._missing:
                        return store if desk.decide(attempt, _COMMITTED) else None
                    membership.changed.wait(self._poll_seconds(members))
                if time.monotonic() > press:
                    self._press(self._missing)
                    press = time.monotonic() + self._seconds
                self._retell()
        finally:
            desk.decide(attempt, _ABORTED)
        time.sleep(_POLL_SECONDS)
        return None

    def _press(self, missing: list[int]) -> None:
        """Give up those of the missing who do not even answer."""
        with ThreadPoolExecutor(min(len(missing), 16)) as pool:
            for worker, answer in zip(missing, pool.map(self._membership.ask, missing), strict=True):
                if answer is None:
                    self._give_up(worker)

    def _give_up(self, worker: int) -> None:
        self._membership.report_worker(worker, "silent", self._membership.step)

    def _attend(self, members: tuple[int, ...]) -> dist.Store | None:
        """One attempt as a guest; `None`: it was aborted."""
        membership, key, host = self._membership, self._key(members), members[0]
        attempt, store, heard = self._desk.enter(key, members), None, time.monotonic()
        self._missing = [host]
        with contextlib.closing(membership.caller(host)) as line:
            while True:
                view = self._view()
                if store is None and not (view == members and self._needed()):
                    return None
                if host not in view:
                    assert store is not None
                    return store if self._was_committed(key, members, attempt) else None
                kind = Kind.ARRIVE if store is None else Kind.CONFIRM
                reply = membership.call(line, host, Message(kind, membership.worker, text=key))
                if reply is not None:
                    heard = time.monotonic()
                    self._missing = [host if reply.step == _UNKNOWN or reply.neighbor < 0 else reply.neighbor]
                    if reply.step == _READY and store is None:
                        store = self._connect(key, host, reply.number)
                        continue
                    if store is not None and reply.step in (_COMMITTED, _ABORTED):
                        if self._desk.decide(attempt, reply.step):
                            return store if reply.step == _COMMITTED else None
                        # Somebody who has lost the host was promised that this worker does not return.
                        return store if self._was_committed(key, members, attempt) else None
                elif time.monotonic() - heard > self._seconds:
                    self._give_up(host)
                self._wait(members)

    def _was_committed(self, key: bytes, members: tuple[int, ...], attempt: _Attempt) -> bool:
        """The host is lost: has anybody else returned?"""
        membership, started = self._membership, time.monotonic()
        pending = set(members[1:]) - {membership.worker}
        while pending := pending & set(self._view()):
            for worker in sorted(pending):
                with contextlib.closing(membership.caller(worker)) as line:
                    reply = membership.call(line, worker, Message(Kind.OUTCOME, membership.worker, text=key))
                if reply is not None and reply.step == _COMMITTED:
                    with membership.changed:
                        attempt.outcome = _COMMITTED
                    return True
                if reply is not None:
                    pending.discard(worker)
                elif time.monotonic() - started > self._seconds:
                    self._give_up(worker)
            if pending:
                self._wait(members)
        return not self._desk.decide(attempt, _ABORTED)

    def _wait(self, members: Iterable[int]) -> None:
        with self._membership.changed:
            self._membership.changed.wait(self._poll_seconds(members))
        self._retell()

    @staticmethod
    def _poll_seconds(members: Iterable[int]) -> float:
        return max(_POLL_SECONDS, 0.001 * len(tuple(members)))

    def _retell(self) -> None:
        if time.monotonic() - self._told > _RETELL_SECONDS:
            self._told = time.monotonic()
            self._membership.retell()

    def _connect(self, key: bytes, host: int, port: int) -> dist.Store | None:
        """A connection to the host's store; `None`: there was none within the timeout, or the host is lost."""
        address, found = self._membership.address(host), []

        def connect() -> None:
            try:
                found.append(
                    dist.TCPStore(
                        address.sockaddr[0], port, None, is_master=False, timeout=timedelta(seconds=self._seconds),
                        wait_for_workers=False,
                    )
                )  # fmt: skip
            except RuntimeError as error:
                _log.debug("no connection to the store of worker %d: %s", host, str(error).splitlines()[0])

        # On a thread of its own, because torch knows no deadline for a server that is frozen once it has connected.
        thread = threading.Thread(target=connect, name="gathering-store", daemon=True)
        thread.start()
        until = time.monotonic() + self._seconds
        while thread.is_alive() and time.monotonic() < until and host in self._membership.members:
            thread.join(_POLL_SECONDS)
        if not found:
            return None
        found[0].set_timeout(timedelta(seconds=self._patience_seconds))
        return dist.PrefixStore(key.hex(), found[0])


def serve_store(address: Address, workers: int) -> dist.TCPStore:
    """A store that listens at this address alone, at a port that is free.

    Args:
        address: this worker's door; its port is not used.
        workers: N, the connections to be ready for.
    """
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    with listener:
        listener.bind((address.sockaddr[0], 0, *address.sockaddr[2:]))
        listener.listen(workers * 8)
        host, port = listener.getsockname()[:2]
        # The store takes the descriptor over; detached, so that it is not closed twice.
        return dist.TCPStore(
            host, port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
