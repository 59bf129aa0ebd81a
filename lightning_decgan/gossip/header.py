"""The 64 bytes at the end of every message: which round it belongs to, and whether there is anything in it.

Both ends of an edge see both headers of a swap, so both come to the same conclusion without asking each other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["HEADER_BYTES", "Header"]

HEADER_BYTES = 64
# Magic, flags, turn within the round, round number, norm of the snapshot; the rest is zero and belongs to the future.
_FORMAT = struct.Struct("<4sHHqd40x")
_MAGIC = b"DGN1"
_VOID = 1


@dataclass(frozen=True)
class Header:
    """What a message says of itself.

    Attributes:
        number: the round of gossip, counted alike by both ends.
        turn: which of the messages of that round this is.
        norm: Euclidean norm of the sender's snapshot.
        void: the sender has nothing to publish; the payload must not be read.

    Example:
        >>> import torch
        >>> message = torch.zeros(8 + HEADER_BYTES, dtype=torch.uint8)
        >>> Header(number=3, turn=0, norm=2.5, void=False).write(message)
        >>> Header.read(message)
        Header(number=3, turn=0, norm=2.5, void=False)
    """

    number: int
    turn: int
    norm: float
    void: bool

    def write(self, message: Tensor) -> None:
        """Put the header at the end of a `uint8` message."""
        packed = _FORMAT.pack(_MAGIC, _VOID if self.void else 0, self.turn, self.number, self.norm)
        message[-HEADER_BYTES:].copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))

    @classmethod
    def read(cls, message: Tensor) -> Header | None:
        """The header of a received message, or `None` if it has none that this version understands."""
        packed = message[-HEADER_BYTES:].cpu().numpy().tobytes()
        magic, flags, turn, number, norm = _FORMAT.unpack(packed)
        return cls(number, turn, norm, bool(flags & _VOID)) if magic == _MAGIC else None

    def fits(self, other: Header) -> bool:
        """Whether the other end's message belongs to the same turn of the same round."""
        return (self.number, self.turn) == (other.number, other.turn)
