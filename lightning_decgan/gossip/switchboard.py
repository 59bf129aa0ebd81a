"""Connections of one thread and one selector: accept, dial, deadlines, jobs from other threads. Nothing here blocks.

What bytes mean and what the end of a connection means is decided in `door.py`.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lightning_decgan.gossip.wire import Address

__all__ = ["Line", "Operator", "Switchboard"]

_log = logging.getLogger(__name__)

_boards: weakref.WeakSet[Switchboard] = weakref.WeakSet()


@dataclass(eq=False)
class Line:
    """One connection.

    Attributes:
        socket: its end here.
        role: what it is for.
        peer: the worker at the other end, -1 while that is not known.
        outbox: what is still to be sent.
        deadline: when it has failed, by `time.monotonic()`.
        connected: whether the other end has accepted.
        inbox: what was received and not yet used.
    """

    socket: socket.socket
    role: str
    peer: int
    outbox: bytes
    deadline: float
    connected: bool
    inbox: bytearray = field(default_factory=bytearray)


class Operator(Protocol):
    """Who decides, on the switchboard's thread."""

    def accepted(self, connection: socket.socket) -> None:
        """Somebody has connected."""

    def sent(self, line: Line) -> None:
        """The outbox is empty."""

    def received(self, line: Line) -> None:
        """There is more in the inbox."""

    def failed(self, line: Line, code: int) -> None:
        """The connection could not be made, or broke (`code`, an errno), or has ended (0); it is closed already."""


class Switchboard:
    """A listener and any number of connections.

    Args:
        host: the address to listen on; the port is the system's choice.

    Raises:
        OSError: the address does not belong to this machine.
    """

    def __init__(self, host: str) -> None:
        address = Address.resolve(host, 0)
        self._listener = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            self._listener.bind(address.sockaddr)
            self._listener.listen(1024)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake_receive, self._wake_send = socket.socketpair()
        for end in (self._wake_receive, self._wake_send):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._stopped = False
        self.thread: threading.Thread | None = None
        self.lines: set[Line] = set()
        self.closed = False
        _boards.add(self)

    def start(self, operator: Operator, name: str) -> None:
        """Begin to serve; who connected earlier has waited in the listener's queue."""
        self._operator = operator
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_receive, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def post(self, job: Callable[[], None]) -> None:
        """Run a job on the thread, soon. From any thread."""
        self._jobs.append(job)
        # Full: the thread is woken already. Closed: there is nothing to wake.
        with contextlib.suppress(OSError):
            self._wake_send.send(b"\0")

    def close_sockets(self) -> None:
        """Close everything at once, without a word: where the thread does not run."""
        self.closed = True
        for line in list(self.lines):
            line.socket.close()
        self.lines.clear()
        self._selector.close()
        for end in (self._listener, self._wake_receive, self._wake_send):
            end.close()

    # From here on everything runs on the thread.

    def stop(self) -> None:
        """End the thread, which closes everything."""
        self._stopped = True

    def later(self, seconds: float, job: Callable[[], None]) -> None:
        """Run a job after a while."""
        self._timers.append((time.monotonic() + seconds, job))

    def add(self, line: Line) -> None:
        """Serve a connection."""
        self.lines.add(line)
        events = selectors.EVENT_READ if line.connected else selectors.EVENT_WRITE
        self._selector.register(line.socket, events, data=line)

    def drop(self, line: Line) -> None:
        """Close a connection, if it is still there."""
        if line in self.lines:
            self.lines.discard(line)
            self._selector.unregister(line.socket)
            line.socket.close()

    def dial(self, address: Address, role: str, peer: int, outbox: bytes, seconds: float) -> None:
        """Connect and send the outbox; within some seconds, or it has failed.

        Raises:
            OSError: this process has no more descriptors, which says nothing about the other end.
        """
        connection = socket.socket(address.family, socket.SOCK_STREAM)
        connection.setblocking(False)
        line = Line(connection, role, peer, outbox, time.monotonic() + seconds, connected=False)
        code = connection.connect_ex(address.sockaddr)
        self.add(line)
        if code not in (0, errno.EINPROGRESS):
            self._fail(line, code)

    def _run(self) -> None:
        try:
            while not self._stopped:
                for key, _ in self._selector.select(self._seconds_to_next_deadline()):
                    self._guard(lambda key=key: self._ready(key))  # type: ignore[misc]
                while self._jobs:
                    self._guard(self._jobs.popleft())
                self._expire()
        finally:
            self.close_sockets()

    @staticmethod
    def _guard(job: Callable[[], None]) -> None:
        """One failing job must not make this worker deaf to all others."""
        try:
            job()
        except Exception:
            _log.exception("an error in the membership's thread; it goes on")

    def _seconds_to_next_deadline(self) -> float | None:
        times = [line.deadline for line in self.lines] + [due for due, _ in self._timers]
        soonest = min(times, default=float("inf"))
        return None if soonest == float("inf") else max(soonest - time.monotonic(), 0.0)

    def _expire(self) -> None:
        now = time.monotonic()
        for line in [line for line in self.lines if line.deadline <= now]:
            self._guard(lambda line=line: self._fail(line, errno.ETIMEDOUT))  # type: ignore[misc]
        due = [job for when, job in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for job in due:
            self._guard(job)

    def _ready(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._wake_receive:
            with contextlib.suppress(BlockingIOError):
                self._wake_receive.recv(4096)
        elif key.fileobj is self._listener:
            self._accept()
        elif key.data in self.lines:  # an earlier event of this turn may have closed it
            self._serve(key.data)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.debug("a connection could not be accepted: %s", error)
            time.sleep(0.01)  # no descriptors left: the listener stays ready, and this must not become a busy loop
            return
        connection.setblocking(False)
        self._operator.accepted(connection)

    def _serve(self, line: Line) -> None:
        try:
            if not line.connected:
                code = line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._fail(line, code)
                    return
                line.connected = True
                line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if line.outbox:
                line.outbox = line.outbox[line.socket.send(line.outbox) :]
                if not line.outbox:
                    self._selector.modify(line.socket, selectors.EVENT_READ, data=line)
                    self._operator.sent(line)
                return
            data = line.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:  # a reset: the process at the other end died with bytes of ours unread
            self._fail(line, error.errno or errno.EIO)
            return
        if not data:
            self._fail(line, 0)
            return
        line.inbox += data
        self._operator.received(line)

    def _fail(self, line: Line, code: int) -> None:
        if line in self.lines:
            self.drop(line)
            self._operator.failed(line, code)


def _close_in_child() -> None:
    """A forked child (a DataLoader's worker) holds copies of the sockets: they would outlive a killed parent.

    Closing the copies leaves the parent's connections as they are.
    """
    for board in list(_boards):
        board.close_sockets()


os.register_at_fork(after_in_child=_close_in_child)
