"""The messages by which workers tell each other who is still there: one packed struct of fixed size, and nothing else.

Whatever arrives is checked before it is used: length, magic, version, the run's secret token, kind and the range of
every number. Nothing received is unpickled, evaluated or used as a name.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import re
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist

__all__ = [
    "MESSAGE_BYTES",
    "Address",
    "Caller",
    "Kind",
    "MalformedMessage",
    "Message",
    "clean_reason",
    "exchange_addresses",
]

_TOKEN_BYTES = 16
_MAGIC, _VERSION, _TEXT_BYTES, _KEY_BYTES = b"dcgm", 1, 64, 32
# magic, version, token, kind, worker, neighbour, step, number, text
_STRUCT = struct.Struct(f"!4sB{_TOKEN_BYTES}sBiiqq{_TEXT_BYTES}s")
MESSAGE_BYTES = _STRUCT.size
_ADDRESS = re.compile(rb"([0-9A-Za-z.:%_-]{1,255}) ([1-9][0-9]{0,4})")


class MalformedMessage(ValueError):
    """Bytes that no worker of this run sends."""


class Kind(enum.IntEnum):
    """What a message says; the fields that it uses stand behind it."""

    WATCH = 1  #: keep this connection and answer once
    ASK = 2  #: how far are you?
    ANSWER = 3  #: number: gossip number; step: 1 while waiting in an exchange
    LOST = 4  #: neighbor: who was given up; number: who noticed; step; text: reason
    EDGE = 5  #: the link worker-neighbor is given up; number: how often links were forgiven; step; text: reason
    GOODBYE = 6  #: neighbor: who has left of its own will
    ARRIVE = 7  #: text: key of a gathering, worker has come
    CONFIRM = 8  #: text: key; worker will take no other outcome than the host's
    OUTCOME = 9  #: text: key; did you return from this gathering? If not, you never will
    STATE = 10  #: step: state of the gathering; number: the store's port; neighbor: who is missing


@dataclass(frozen=True)
class Message:
    """One message; `worker` is its sender.

    Example:
        >>> token = bytes(range(16))
        >>> wire = Message(Kind.LOST, worker=1, neighbor=2, step=7, number=1, text=b"connection closed").pack(token)
        >>> len(wire) == MESSAGE_BYTES
        True
        >>> Message.unpack(wire, token, workers=3).reason
        'connection closed'
    """

    kind: Kind
    worker: int
    neighbor: int = -1
    step: int = 0
    number: int = 0
    text: bytes = b""

    @property
    def key(self) -> bytes:
        """The SHA-256 that names a gathering."""
        return self.text[:_KEY_BYTES]

    @property
    def reason(self) -> str:
        """The text as a string."""
        return self.text.rstrip(b"\0").decode("ascii")

    def pack(self, token: bytes) -> bytes:
        """The message as `MESSAGE_BYTES` bytes."""
        return _STRUCT.pack(
            _MAGIC, _VERSION, token, self.kind, self.worker, self.neighbor, self.step, self.number, self.text
        )

    @classmethod
    def unpack(cls, data: bytes, token: bytes, workers: int) -> Message:
        """The message in `data`.

        Raises:
            MalformedMessage: these are not the bytes of a message of this run.
        """
        if len(data) != MESSAGE_BYTES:
            raise MalformedMessage(f"{len(data)} bytes instead of {MESSAGE_BYTES}")
        magic, version, its_token, kind, worker, neighbor, step, number, text = _STRUCT.unpack(data)
        if magic != _MAGIC or version != _VERSION:
            raise MalformedMessage("unknown magic or version")
        if not hmac.compare_digest(its_token, token):
            raise MalformedMessage("the token of another run")
        if kind not in Kind.__members__.values():
            raise MalformedMessage(f"unknown kind {kind}")
        if not (0 <= worker < workers and -1 <= neighbor < workers and step >= 0 and number >= 0):
            raise MalformedMessage("a number is out of range")
        message = cls(Kind(kind), worker, neighbor, step, number, text)
        if kind in (Kind.LOST, Kind.EDGE, Kind.GOODBYE) and neighbor < 0:
            raise MalformedMessage("nobody is named")
        if kind == Kind.LOST and number >= workers:
            raise MalformedMessage("whoever noticed is no worker")
        if kind == Kind.EDGE and neighbor == worker:
            raise MalformedMessage("a link has two ends")
        if kind in (Kind.LOST, Kind.EDGE) and not re.fullmatch(rb"[ -~]*", text.rstrip(b"\0")):
            raise MalformedMessage("a reason must be printable ASCII")
        return message


def clean_reason(reason: str) -> str:
    r"""A reason as it fits into a message: printable ASCII of at most 64 characters.

    Example:
        >>> clean_reason("kein Gehör\n")
        'kein Geh?r?'
    """
    return re.sub("[^ -~]", "?", reason)[:_TEXT_BYTES]


class Address(NamedTuple):
    """Where a worker's door is."""

    family: int
    sockaddr: Any

    @classmethod
    def parse(cls, published: bytes) -> Address:
        """The address in `b"host port"`.

        Raises:
            ValueError: it has another form, or the port is out of range.
            OSError: the host cannot be resolved.
        """
        match = _ADDRESS.fullmatch(published)
        if match is None or int(match[2]) > 65535:
            raise ValueError(f"expected an address of the form b'host port', found {published[:80]!r}")
        return cls.resolve(match[1].decode("ascii"), int(match[2]))

    @classmethod
    def resolve(cls, host: str, port: int) -> Address:
        """The first stream address of a host."""
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return cls(family, sockaddr)


class Caller:
    """Requests to one worker's door, one at a time, over one connection that is opened when it is first needed.

    Args:
        address: the door.
        token: the run's secret.
        workers: N, for checking what comes back.
    """

    def __init__(self, address: Address, token: bytes, workers: int) -> None:
        self._address, self._token, self._workers = address, token, workers
        self._socket: socket.socket | None = None

    def request(self, message: Message, within_seconds: float) -> Message:
        """Send a message and wait for the reply.

        Raises:
            OSError: no valid reply within the time (`ConnectionRefusedError`: nobody listens there any more).
        """
        deadline = time.monotonic() + within_seconds
        try:
            if self._socket is None:
                self._socket = socket.socket(self._address.family, socket.SOCK_STREAM)
                self._socket.settimeout(within_seconds)
                self._socket.connect(self._address.sockaddr)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._socket.sendall(message.pack(self._token))
            return Message.unpack(self._receive(self._socket, deadline), self._token, self._workers)
        except (OSError, MalformedMessage) as error:
            # A reply that comes too late must not be taken for the reply to the next request.
            self.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"malformed reply: {error}") from error

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _receive(connection: socket.socket, deadline: float) -> bytes:
        data = b""
        while len(data) < MESSAGE_BYTES:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(MESSAGE_BYTES - len(data))
            if not chunk:
                raise ConnectionError("the door closed the connection")
            data += chunk
        return data


def exchange_addresses(
    worker: int, workers: int, store: dist.Store, published: str
) -> tuple[bytes, dict[int, Address]]:
    """Publish where this worker's door is and learn where all others' are, and the run's secret.

    Args:
        worker: this worker's rank; worker 0 draws the secret.
        workers: N; all must call this.
        store: a store that all share; its timeout is the deadline.
        published: "host port".

    Returns:
        The secret, and the addresses by worker.

    Raises:
        TimeoutError: somebody did not come before the deadline.
        ValueError: what somebody published is not valid.

    Example:
        >>> token, addresses = exchange_addresses(0, 1, dist.HashStore(), "127.0.0.1 4711")
        >>> len(token), addresses[0].sockaddr
        (16, ('127.0.0.1', 4711))
    """
    # A second run of the same processes over the same store must not read the first one's addresses.
    run = store.add(f"membership/{worker}/runs", 1)
    names = [f"membership/{run}/token"] + [f"membership/{run}/door of worker {other}" for other in range(workers)]
    if worker == 0:
        store.set(names[0], secrets.token_hex(_TOKEN_BYTES))  # as digits: not every store keeps zero bytes
    store.set(names[1 + worker], published)
    started = time.monotonic()
    try:
        if store.has_extended_api():  # type: ignore[attr-defined]
            token, *doors = store.multi_get(names)  # one round trip instead of N
        else:
            token, *doors = [store.get(name) for name in names]
    except RuntimeError as error:
        missing: list[str] = []
        with contextlib.suppress(RuntimeError):
            missing = [name for name in names if not store.check([name])]
        raise TimeoutError(
            f"worker {worker} did not learn how to reach the others within {time.monotonic() - started:.1f} s (the"
            f" store's timeout): nobody has set {missing[:3]}; has every worker started?"
        ) from error
    if not re.fullmatch(rb"[0-9a-f]{32}", token):
        raise ValueError(f"expected a secret of 32 hexadecimal digits in the store, found {len(token)} bytes")
    return bytes.fromhex(token.decode("ascii")), {other: Address.parse(door) for other, door in enumerate(doors)}
