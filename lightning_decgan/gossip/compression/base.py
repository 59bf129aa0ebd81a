"""What a compression is: the protocol that every codec follows, and the few tools that they share.

A codec belongs to one end of one edge. It turns this worker's snapshot `s_own` into messages, and the messages of both
ends into one tensor, the *difference*: an approximation of `s_neighbor - s_own`. A codec never talks and never decides
how much of the difference is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = [
    "CHUNK_ELEMENTS",
    "Codec",
    "Compression",
    "Part",
    "StatelessCodec",
    "as_real",
    "lay_out",
    "seeded",
    "subtract",
]

# Elements worked on at a time. From 32,768 on torch shares an operation out among threads, and while training keeps all
# cores busy a codec would wait for those threads: a subtraction of 11 MB took 28 ms so, and 1 ms in pieces. The pieces
# and their scratch also stay in a core's cache.
CHUNK_ELEMENTS = 32_704

# Every part of a message begins at a multiple of this many bytes, so that its typed view is aligned.
_ALIGNMENT_BYTES = 64


class Codec(Protocol):
    """One end of one edge: makes messages of snapshots, and differences of messages.

    A round has `len(message_bytes)` turns. In each, both ends `encode` a message and swap it; then both `decode`. What
    the two ends decode must be exact negatives of each other, bit for bit: then the mean of the two ends cannot move,
    whatever the approximation loses.

    Attributes:
        message_bytes: the size in bytes of each turn's message, the same in every round and at both ends.
    """

    message_bytes: tuple[int, ...]

    def encode(
        self, turn: int, number: int, snapshot: FlatBuffer, sent: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        """Fill `sent[turn]`.

        Args:
            turn: which message of the round, from 0.
            number: the number of the round, the same at both ends.
            snapshot: what this worker gossips; it stays the same throughout a round.
            sent: this end's messages, `uint8` of the sizes `message_bytes`, aligned to 64 bytes; those before `turn`
                are as they were sent.
            received: the other end's messages; those before `turn` have arrived.
        """

    def decode(
        self,
        number: int,
        snapshot: FlatBuffer,
        sent: Sequence[Tensor],
        received: Sequence[Tensor],
        difference: FlatBuffer,
    ) -> None:
        """Overwrite `difference` with the agreed approximation of `s_neighbor - s_own`; it ends the round.

        What is sent of a snapshot and is not finite makes the difference not finite, at both ends; no error is raised.
        """

    def reset(self) -> None:
        """Go back to the state of the start. Both ends do it after a round whose difference was refused."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit, as plain tensors and integers; asked for between rounds."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another codec or to other tensors.
        """


class Compression(Protocol):
    """The settings of a compression: a small, picklable object that makes one codec per end of an edge."""

    def codec(self, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int) -> Codec:
        """The codec of one end of an edge.

        Args:
            vector: the layout of what is swapped.
            edge: the two workers, the lower number first.
            worker: the one of the two whose end this is.
            seed: the strategy's seed, the same on every worker.
        """


class StatelessCodec:
    """The half of `Codec` that one without memory needs not write."""

    def reset(self) -> None:
        """There is nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state and no other."""
        if state:
            raise ValueError(
                f"the state in the checkpoint belongs to another compression (it holds {', '.join(state)}); resume with"
                " the `compression` that the run was started with"
            )


@dataclass(frozen=True)
class Part:
    """A stretch of a message that holds elements of one dtype.

    Attributes:
        dtype: of the elements.
        start: first byte.
        count: elements.
    """

    dtype: torch.dtype
    start: int
    count: int

    def of(self, message: Tensor) -> Tensor:
        """The part of a `uint8` message, as a flat tensor over the same memory."""
        return message[self.start : self.start + self.count * self.dtype.itemsize].view(self.dtype)


def lay_out(pieces: Iterable[tuple[torch.dtype, int]]) -> tuple[tuple[Part, ...], int]:
    """Place pieces (dtype, elements) one after another, aligned. Returns the parts and the size in bytes.

    Example:
        >>> parts, size_bytes = lay_out([(torch.int8, 3), (torch.float32, 2)])
        >>> [part.start for part in parts], size_bytes
        ([0, 64], 72)
    """
    parts, end = [], 0
    for dtype, count in pieces:
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        parts.append(Part(dtype, start, count))
        end = start + count * dtype.itemsize
    return tuple(parts), end


def as_real(flat: Tensor) -> Tensor:
    """A flat tensor as real numbers over the same memory: a complex number is two of them."""
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


def subtract(theirs: Tensor, mine: Tensor, out: Tensor) -> Tensor:
    """`out = theirs - mine`, flat tensors of one dtype, piece by piece."""
    for piece in zip(*(flat.split(CHUNK_ELEMENTS) for flat in (theirs, mine, out)), strict=True):
        torch.sub(piece[0], piece[1], out=piece[2])
    return out


def seeded(purpose: str, *numbers: int) -> torch.Generator:
    """A generator that is the same wherever it is made from the same purpose and numbers.

    Example:
        >>> torch.equal(*(torch.rand(3, generator=seeded("noise", 7, 0, 1)) for _ in range(2)))
        True
    """
    key = ":".join([purpose, *(str(int(number)) for number in numbers)])
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1)
