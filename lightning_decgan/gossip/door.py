"""The door of a worker: it carries messages to and from all other workers and notices when a process has died.

What a message or a death means is decided in `membership.py`. A frozen worker delays nobody but itself: all connections
are served by one thread that never blocks (`switchboard.py`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from lightning_decgan.gossip.switchboard import Line, Switchboard
from lightning_decgan.gossip.wire import MESSAGE_BYTES, Address, Kind, MalformedMessage, Message

__all__ = ["Door", "Resident"]

_log = logging.getLogger(__name__)

# What a connection is for: accepted here, or accepted and asked to stay open; kept open so that its end tells of a
# death; made to be sure of a death; made to deliver something.
_INBOUND, _WATCHER, _WATCH, _PROBE, _ERRAND = "inbound", "watcher", "watch", "probe", "errand"
# A connection that says nothing for so long is closed, unless it watches this worker.
_IDLE_SECONDS = 10.0
# What the kernel goes on trying for a worker that cannot be reached, and what a goodbye may delay the end of a run.
_ERRAND_SECONDS, _GOODBYE_SECONDS = 5.0, 0.5
# More connections than this (and some per worker) that have said nothing yet, and the oldest of them is closed:
# strangers must not use up the process's descriptors.
_MOST_SILENT = 64
_NO_REQUESTS = frozenset({Kind.ANSWER, Kind.STATE})
_REPLIES = frozenset({Kind.ANSWER, Kind.LOST, Kind.GOODBYE})


class Resident(Protocol):
    """Who lives behind a door. Both methods are called from the door's thread and must be quick."""

    def receive(self, message: Message) -> Message | None:
        """A message has come; the reply to it, if it wants one."""

    def gone(self, worker: int, reason: str) -> None:
        """The process of a worker has ended without a goodbye."""


class Door:
    """A listener for the other workers' messages, and the connections to theirs.

    Args:
        host: the address to listen on, such as "127.0.0.1"; the others must be able to reach it.

    Raises:
        OSError: the address does not belong to this machine.
    """

    def __init__(self, host: str) -> None:
        self._board = Switchboard(host)
        self.port = self._board.port
        self._retrying: set[int] = set()
        self._watched: set[int] = set()
        self._forgotten: set[int] = set()
        self._leaving = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or this is a forked child's copy."""
        return self._board.closed

    def start(
        self, worker: int, addresses: Mapping[int, Address], token: bytes, resident: Resident, answer_seconds: float
    ) -> None:
        """Begin to serve.

        Args:
            worker: who lives here.
            addresses: everybody's door.
            token: the run's secret.
            resident: what to do with messages and deaths.
            answer_seconds: the time within which a living worker answers.
        """
        self._worker, self._addresses, self._token = worker, dict(addresses), token
        self._resident, self._answer_seconds = resident, answer_seconds
        self._hello = Message(Kind.WATCH, worker).pack(token)
        self._board.start(self, f"door-{worker}")

    def post(self, job: Callable[[], None]) -> None:
        """Run a job on the door's thread, soon; never blocks."""
        self._board.post(job)

    def tell(self, messages: Iterable[Message], workers: Iterable[int]) -> None:
        """Deliver messages in the background, to all these workers at the same time."""
        parcel, receivers = b"".join(message.pack(self._token) for message in messages), tuple(workers)
        if parcel:
            self.post(lambda: self._run_errands(parcel, receivers))

    def watch(self, workers: Iterable[int]) -> None:
        """Keep one connection to each of these workers and to nobody else."""
        wanted = set(workers)
        self.post(lambda: self._set_watched(wanted))

    def suspect(self, worker: int) -> None:
        """Look at once whether a worker is still there; `Resident.gone` is called if not."""
        self.post(lambda: self._probe(worker))

    def forget(self, worker: int) -> None:
        """A worker is gone for good: keep no connection to it and look after it no more."""
        self.post(lambda: self._forget(worker))

    def close(self, goodbye: Message, workers: Iterable[int]) -> None:
        """Say goodbye to these workers, end the thread and close every socket; may be called again."""
        thread = self._board.thread
        if self.closed:
            return
        self._board.closed = True
        if thread is None:
            self._board.close_sockets()
            return
        wire, receivers = goodbye.pack(self._token), tuple(workers)
        self.post(lambda: self._leave(wire, receivers))
        if threading.current_thread() is not thread:
            thread.join()

    # What the switchboard calls, on its thread.

    def accepted(self, connection: socket.socket) -> None:
        """Somebody has connected."""
        silent = [line for line in self._board.lines if line.role == _INBOUND and line.peer < 0]
        if len(silent) >= _MOST_SILENT + 4 * len(self._addresses):
            self._board.drop(min(silent, key=lambda line: line.deadline))
        self._board.add(Line(connection, _INBOUND, -1, b"", time.monotonic() + _IDLE_SECONDS, connected=True))

    def sent(self, line: Line) -> None:
        """What was to be sent on a connection made here has been sent."""
        if line.role == _WATCH:
            line.deadline = float("inf")
        elif line.role == _ERRAND:
            self._board.drop(line)
            self._stop_if_done()

    def received(self, line: Line) -> None:
        """Take apart what has come; whoever sends something else than messages is not listened to any further."""
        while len(line.inbox) >= MESSAGE_BYTES and line in self._board.lines:
            wire = bytes(line.inbox[:MESSAGE_BYTES])
            del line.inbox[:MESSAGE_BYTES]
            try:
                message = Message.unpack(wire, self._token, len(self._addresses))
                if line.role in (_INBOUND, _WATCHER):
                    self._hear_request(line, message)
                else:
                    self._hear_reply(line, message)
            except MalformedMessage as error:
                _log.debug("closed a connection (%s): %s", line.role, error)
                self._board.drop(line)

    def failed(self, line: Line, code: int) -> None:
        """A connection could not be made, or has ended."""
        if self._leaving:
            self.post(self._stop_if_done)  # not before the other goodbyes are on their way
            return
        refused = code in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)
        if line.role == _PROBE and (refused or not code):
            if line.peer not in self._forgotten:
                self._resident.gone(line.peer, "process ended")
        elif line.role == _PROBE or (line.role == _WATCH and not refused and line.deadline < float("inf")):
            self._retry(line.peer)  # it cannot be reached for now, which is no sign of death
        elif line.role == _WATCH or (line.role == _ERRAND and refused):
            # Not yet a proof: a goodbye may be on its way, or a router has reset the connection.
            self._probe(line.peer)

    def _hear_request(self, line: Line, message: Message) -> None:
        if message.kind in _NO_REQUESTS:
            raise MalformedMessage(f"{message.kind.name} is no request")
        line.peer = message.worker
        if message.kind is Kind.WATCH:
            line.role = _WATCHER
        line.deadline = float("inf") if line.role == _WATCHER else time.monotonic() + _IDLE_SECONDS
        reply = self._resident.receive(message)
        if reply is None:
            return
        try:
            # A reply is a few bytes: when they do not fit, the other end has stopped reading.
            sent = line.socket.send(reply.pack(self._token))
        except OSError:
            sent = 0
        if sent != MESSAGE_BYTES:
            self._board.drop(line)

    def _hear_reply(self, line: Line, message: Message) -> None:
        if message.kind not in _REPLIES or message.worker != line.peer:
            raise MalformedMessage(f"{message.kind.name} of worker {message.worker} is no reply of worker {line.peer}")
        if message.kind is not Kind.ANSWER:
            self._resident.receive(message)
        elif line.role == _PROBE:
            if line.peer in self._watched and not self._has(_WATCH, line.peer):
                line.role, line.deadline = _WATCH, float("inf")
            else:
                self._board.drop(line)

    def _dial(self, role: str, worker: int, parcel: bytes) -> None:
        seconds = _ERRAND_SECONDS if role == _ERRAND else self._answer_seconds
        try:
            self._board.dial(self._addresses[worker], role, worker, parcel, seconds)
        except OSError as error:
            _log.warning("worker %d cannot connect to worker %d: %s", self._worker, worker, error)
            if role != _ERRAND:
                self._retry(worker)

    def _run_errands(self, parcel: bytes, workers: Iterable[int]) -> None:
        for worker in workers:
            self._dial(_ERRAND, worker, parcel)

    def _has(self, role: str, worker: int) -> bool:
        return any(line.role == role and line.peer == worker for line in self._board.lines)

    def _probe(self, worker: int) -> None:
        if worker not in self._forgotten and not self._has(_PROBE, worker):
            self._dial(_PROBE, worker, self._hello)

    def _retry(self, worker: int) -> None:
        if worker not in self._retrying:
            self._retrying.add(worker)
            self._board.later(self._answer_seconds, lambda: self._watch_again(worker))

    def _watch_again(self, worker: int) -> None:
        self._retrying.discard(worker)
        self._watch_missing()

    def _watch_missing(self) -> None:
        for worker in sorted(self._watched - self._retrying):
            if not self._has(_WATCH, worker) and not self._has(_PROBE, worker):
                self._dial(_WATCH, worker, self._hello)

    def _set_watched(self, wanted: set[int]) -> None:
        self._watched = wanted - self._forgotten
        for line in [line for line in self._board.lines if line.role == _WATCH and line.peer not in self._watched]:
            self._board.drop(line)
        self._watch_missing()

    def _forget(self, worker: int) -> None:
        self._forgotten.add(worker)
        self._watched.discard(worker)
        for line in [line for line in self._board.lines if line.peer == worker and line.role in (_WATCH, _PROBE)]:
            self._board.drop(line)

    def _leave(self, goodbye: bytes, workers: tuple[int, ...]) -> None:
        self._leaving = True
        watchers = [line for line in self._board.lines if line.role == _WATCHER]
        for line in watchers:
            # On the watched connection itself, so that it is read before the end of that connection is.
            with contextlib.suppress(OSError):
                line.socket.send(goodbye)
        self._board.later(_GOODBYE_SECONDS, self._board.stop)
        self._run_errands(goodbye, set(workers) - {line.peer for line in watchers})
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._leaving and not any(line.role == _ERRAND for line in self._board.lines):
            self._board.stop()
