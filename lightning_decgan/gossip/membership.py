"""Who is still there: deaths are noticed, everybody is told, and the living can meet and get a store of their own.

Every worker has a door (`door.py`) whose address all others know, so nothing here needs worker 0, or anybody else in
particular, to be alive. A worker that was given up stays given up, and so the views of all workers only ever shrink
towards the same one. This module never decides what a loss means for the gossip: it calls back, and others do.

What counts as a death: the end of the connection to a watched worker's door, when its door then refuses another. Every
worker watches its neighbours and the member that follows it, so that nobody is without a living watcher for long. A
frozen process (SIGSTOP, a machine that swaps) still has open connections: it does not answer `ask`, but only a caller
with a deadline of its own may give it up. Where the network falls in two, each side gives up the other and goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from lightning_decgan.gossip.door import Door
from lightning_decgan.gossip.gathering import Desk, Gathering, serve_store
from lightning_decgan.gossip.roster import EdgeLoss, Loss, Roster
from lightning_decgan.gossip.wire import Address, Caller, Kind, Message, clean_reason, exchange_addresses

__all__ = ["Answer", "Loss", "Membership"]

_log = logging.getLogger(__name__)

# How many others are told again at a time; all of them, in turn.
_RETELL_TO = 8


@dataclass(frozen=True)
class Answer:
    """What a living worker says of itself: its gossip number, and whether it is itself waiting for somebody."""

    progress: int
    waiting: bool


class Membership:
    """One worker's view of who is still there; made by `Membership.open`.

    Attributes:
        worker: this worker.
        workers: N, at the start.
        progress: gossip number of this worker, told to whoever asks; set by the gossiper.
        waiting: whether this worker is itself waiting in an exchange; set by the gossiper.
        step: batches of this worker, written into what it notices by itself; set by whoever trains.
        changed: the lock of what is known, notified at each change.

    Example: alone.
        >>> membership = Membership.open(0, 1, dist.HashStore(), "127.0.0.1")
        >>> membership.members
        (0,)
        >>> store, members = membership.gather("group 0", timedelta(seconds=5))
        >>> store.set("key", "value"), store.get("key"), members
        (None, b'value', (0,))
        >>> membership.close()
    """

    def __init__(
        self, worker: int, workers: int, door: Door, addresses: Mapping[int, Address], token: bytes, seconds: float
    ) -> None:
        self.worker, self.workers = worker, workers
        self.progress = 0
        self.waiting = False
        self.step = 0
        self._callbacks: list[Callable[[], None]] = []
        self._names: set[str] = set()
        self._turns = itertools.count()
        self._server: dist.TCPStore | None = None
        self._door, self._addresses, self._token = door, dict(addresses), token
        self._answer_seconds = seconds
        self._roster = Roster(worker, workers, announce=lambda: door.post(self._call_back))
        self.changed = self._roster.changed
        self._desk = Desk(worker, self.changed)
        self._neighbors: frozenset[int] = frozenset()
        door.start(worker, addresses, token, self, self._answer_seconds)
        self._watch()

    @property
    def members(self) -> tuple[int, ...]:
        """Who is there, sorted; this worker included, unless it was given up itself."""
        return self._roster.members

    @property
    def lost(self) -> Mapping[int, Loss]:
        """Who was given up, by worker; only grows."""
        return self._roster.lost

    @property
    def left(self) -> frozenset[int]:
        """Who has said goodbye (`close`); only grows."""
        return self._roster.left

    @property
    def departures(self) -> dict[int, str]:
        """Why those who are no members any more are none, by worker: a sentence's end for people."""
        return self._roster.departures

    @property
    def lost_edges(self) -> frozenset[tuple[int, int]]:
        """Links (low, high) between members that are given up, until `forgive_edges`."""
        return self._roster.lost_edges

    @property
    def version(self) -> int:
        """Grows with each change of the above."""
        return self._roster.version

    @property
    def given_up(self) -> Loss | None:
        """How the others gave up this very worker (it was frozen for long, say); it must stop training."""
        return self.lost.get(self.worker)

    @classmethod
    def open(
        cls, worker: int, workers: int, store: dist.Store, host: str, answer_within: timedelta = timedelta(seconds=1)
    ) -> Membership:
        """Open this worker's door and learn where everybody else's is; all N workers must call this.

        Args:
            worker: this worker's rank.
            workers: N.
            store: a store that all workers share; used here only, and its timeout is the deadline.
            host: the address of this machine at which the others reach it; nothing listens on any other.
            answer_within: how soon a worker that lives answers.

        Raises:
            TimeoutError: somebody did not come before the store's deadline; the message says who.
            ValueError: an argument, or what another worker published, is not valid.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be in 0..{workers - 1}, found {worker}")
        if host in ("", "0.0.0.0", "::"):  # noqa: S104
            raise ValueError(f"host must be an address at which the others reach this machine, found {host!r}")
        if answer_within <= timedelta(0):
            raise ValueError(f"answer_within must be positive, found {answer_within}")
        door = Door(host)
        try:
            token, addresses = exchange_addresses(worker, workers, store, f"{host} {door.port}")
            return cls(worker, workers, door, addresses, token, answer_within.total_seconds())
        except BaseException:
            door.close(Message(Kind.GOODBYE, worker, worker), ())
            raise

    def watch(self, neighbors: Iterable[int]) -> None:
        """Keep one connection to each of these workers, so that the death of their process is noticed at once.

        Args:
            neighbors: whom to watch from now on; whoever was watched and is not among them no longer is.
        """
        self._neighbors = frozenset(self._checked(neighbor, "neighbors") for neighbor in neighbors)
        self._watch()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, from the door's thread, after each change of `version`; what it does must not wait or `ask`."""
        self._callbacks.append(callback)

    def ask(self, neighbor: int) -> Answer | None:
        """How far a worker is; `None`: it did not answer in time (it is dead, frozen, or cannot be reached)."""
        neighbor = self._checked(neighbor, "neighbor")
        with contextlib.closing(self.caller(neighbor)) as line:
            reply = self.call(line, neighbor, Message(Kind.ASK, self.worker))
        if reply is None or reply.kind is not Kind.ANSWER:
            return None
        return Answer(reply.number, bool(reply.step))

    def report_worker(self, worker: int, reason: str, step: int) -> None:
        """Give up a worker and tell everybody, itself too, in the background. A worker given up itself accuses nobody.

        Args:
            worker: who is lost.
            reason: why; what is not printable ASCII is replaced, what is beyond 64 characters cut off.
            step: this worker's batch.
        """
        loss = Loss(self._checked(worker, "worker"), clean_reason(reason), step, self.worker, time.monotonic())
        if self.given_up is None and self._note_loss(loss):
            self._tell_all(self._about(loss))

    def report_edge(self, neighbor: int, reason: str, step: int) -> None:
        """Give up this worker's link to a neighbour, both of whom live, and tell everybody in the background."""
        edge = self._edge(self.worker, self._checked(neighbor, "neighbor"))
        loss = EdgeLoss(edge, clean_reason(reason), step, self._roster.forgiven)
        if self.given_up is None and self._roster.note_edge(loss):
            self._tell_all(self._about_edge(loss))

    def forgive_edges(self) -> None:
        """Forget the lost links, because new ones were made; all members must do so equally often."""
        self._roster.forgive_edges()

    def gather(
        self, name: str, timeout: timedelta, patience: timedelta | None = None
    ) -> tuple[dist.Store, tuple[int, ...]]:
        """Meet all other members; see `gathering.py` for the protocol, what it guarantees and what nothing can.

        Args:
            name: names this gathering; the same on all members, and used once.
            timeout: who has neither come nor answered after it is given up ("silent").
            patience: whoever answers but has not come after it is an error; ten timeouts if it is not given.

        Returns:
            A store hosted by the lowest member, and the members: the same tuple on all that return. The store listens
            at that member's address alone, lives until that member closes (or longer, where it holds `hosted_store`),
            and its own deadline is the patience.

        Raises:
            TimeoutError: a member that answers did not come; the message says who.
            RuntimeError: the others have given up this worker, or `close` was called.
            ValueError: the name was used before, or the timeout is not positive.
        """
        met = self.gather_while(lambda: True, name, timeout, patience)
        assert met is not None
        return met

    def gather_while(
        self, needed: Callable[[], bool], name: str, timeout: timedelta, patience: timedelta | None = None
    ) -> tuple[dist.Store, tuple[int, ...]] | None:
        """`gather`, unless it turns out that there is nothing to meet for.

        Args:
            needed: asked whenever this worker is free to go; a function of members and lost edges alone, so that in the
                end all members answer alike.
            name: as for `gather`; free again after `None`, for other members.
            timeout: as for `gather`.
            patience: as for `gather`.

        Returns:
            What `gather` returns, or `None`: it was not needed any more, and nobody met.

        Raises:
            TimeoutError, RuntimeError, ValueError: as `gather`.
        """
        if timeout <= timedelta(0):
            raise ValueError(f"timeout must be positive, found {timeout}")
        with self.changed:
            if name in self._names:
                raise ValueError(f"name must be new for each gathering, found {name!r} again")
            self._names.add(name)
        met = Gathering(self, self._desk, name, timeout, patience or 10 * timeout, needed).run()
        if met is None:
            with self.changed:
                self._names.discard(name)
        return met

    def close(self) -> None:
        """Say goodbye, stop the thread and close all sockets; may be called again."""
        self._door.close(Message(Kind.GOODBYE, self.worker, self.worker), self._others())
        with self.changed:
            self._server = None
            self.changed.notify_all()

    # What gatherings need.

    def check(self) -> None:
        """Raise `RuntimeError` when this worker was given up or has closed."""
        if self.given_up is not None:
            raise RuntimeError(
                f"worker {self.worker} was given up by worker {self.given_up.seen_by} ({self.given_up.reason}) and"
                " must not go on: the others have gone on without it"
            )
        if self._door.closed:
            raise RuntimeError(f"the membership of worker {self.worker} is closed")

    def address(self, worker: int) -> Address:
        """Where a worker's door is."""
        return self._addresses[worker]

    def store_port(self) -> int:
        """The port of the store that this worker hosts; one serves all gatherings, each under its own prefix."""
        with self.changed:
            if self._server is None:
                self._server = serve_store(self._addresses[self.worker], self.workers)
            return self._server.port

    @property
    def hosted_store(self) -> dist.Store | None:
        """The store that this worker hosts, if it does: it is served as long as somebody holds it."""
        return self._server

    def caller(self, worker: int) -> Caller:
        """A connection for requests to a worker."""
        return Caller(self._addresses[worker], self._token, self.workers)

    def call(self, line: Caller, worker: int, message: Message) -> Message | None:
        """The reply of a worker; `None`: there was none in time."""
        try:
            reply = line.request(message, self._answer_seconds)
        except ConnectionRefusedError:
            self._door.suspect(worker)
            return None
        except OSError as error:
            _log.debug("worker %d did not answer: %s", worker, error)
            return None
        if reply.kind is Kind.LOST:
            self.receive(reply)
            return None
        return reply

    def retell(self) -> None:
        """Tell some members, in turn, everything that this one knows: whoever noticed may have died telling it."""
        others = self._others()
        start = next(self._turns) * _RETELL_TO % max(len(others), 1)
        goodbyes = [Message(Kind.GOODBYE, self.worker, other) for other in sorted(self.left)]
        self._door.tell(
            [
                *map(self._about, self.lost.values()),
                *goodbyes,
                *map(self._about_edge, self._roster.own_edge_losses),
            ],
            (others[start:] + others[:start])[:_RETELL_TO],
        )

    # What the door calls, on its thread.

    def receive(self, message: Message) -> Message | None:
        """Take note of a message of another worker; the reply to a question."""
        sender = message.worker
        if message.kind is Kind.LOST:
            # From a worker that was given up (it wakes up and finds everybody late), only what concerns this one.
            if sender not in self.lost or message.neighbor == self.worker:
                self._note_loss(Loss(message.neighbor, message.reason, message.step, message.number, time.monotonic()))
            return None
        if message.kind is Kind.GOODBYE:
            if self._roster.note_goodbye(message.neighbor):
                self._door.forget(message.neighbor)
            return None
        if sender in self.lost:
            return self._about(self.lost[sender])
        if message.kind is Kind.EDGE:
            edge = self._edge(sender, message.neighbor)
            self._roster.note_edge(EdgeLoss(edge, message.reason, message.step, message.number))
            return None
        if message.kind in (Kind.WATCH, Kind.ASK):
            return Message(Kind.ANSWER, self.worker, step=int(self.waiting), number=self.progress)
        return self._desk.answer(message)

    def gone(self, worker: int, reason: str) -> None:
        """The process of a worker has ended without a goodbye."""
        if worker not in self.left:
            self.report_worker(worker, reason, self.step)

    def _checked(self, worker: int, argument: str) -> int:
        if not 0 <= worker < self.workers or worker == self.worker:
            raise ValueError(
                f"{argument} must be of 0..{self.workers - 1} and not this worker ({self.worker}), found {worker}"
            )
        return worker

    def _about(self, loss: Loss) -> Message:
        return Message(Kind.LOST, self.worker, loss.worker, loss.step, loss.seen_by, loss.reason.encode("ascii"))

    def _about_edge(self, loss: EdgeLoss) -> Message:
        other = sum(loss.edge) - self.worker
        return Message(Kind.EDGE, self.worker, other, loss.step, loss.forgiven, loss.reason.encode("ascii"))

    @staticmethod
    def _edge(one: int, other: int) -> tuple[int, int]:
        return min(one, other), max(one, other)

    def _tell_all(self, message: Message) -> None:
        # Those that were given up are told as well: a frozen one reads it when it wakes up.
        self._door.tell([message], set(range(self.workers)) - self.left - {self.worker})

    def _note_loss(self, loss: Loss) -> bool:
        if not self._roster.note_loss(loss):
            return False
        self._door.forget(loss.worker)
        return True

    def _watch(self) -> None:
        """Watch the neighbours, and the next member: every member has a living watcher, whoever dies together."""
        others = self._others()
        following = [other for other in others if other > self.worker] or others
        self._door.watch(self._neighbors.intersection(others).union(following[:1]))

    def _others(self) -> list[int]:
        return [member for member in self.members if member != self.worker]

    def _call_back(self) -> None:
        self._watch()
        for callback in self._callbacks:
            callback()
