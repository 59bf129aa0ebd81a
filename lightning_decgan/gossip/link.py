"""One neighbour as the exchange sees it: an edge, the messages of a round, what compresses and what judges them.

A link turns two snapshots into one difference, `s_neighbour - s_own` or what the two ends agree to take for it, and
says whether it may be added. It never decides when to swap, and it never touches the parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_decgan.gossip.edge import Edge, Swap
from lightning_decgan.gossip.header import HEADER_BYTES, Header
from lightning_decgan.gossip.judge import Judge
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

if TYPE_CHECKING:
    from lightning_decgan.gossip.compression import Codec

__all__ = ["Link"]


class Link:
    """The swaps of one edge, in full precision or through a codec.

    Args:
        edge: the way to the neighbour.
        vector: the layout of what is swapped.
        buffer: where the neighbour's snapshot arrives, so it must be this link's own while a swap is in flight or
            expected; `None` with a codec, or if one is lent for each round.
        codec: what the messages hold; `None` sends the snapshot itself.
    """

    def __init__(self, edge: Edge, vector: FlatVector, buffer: FlatBuffer | None, codec: Codec | None = None) -> None:
        self.edge, self.codec, self.judge = edge, codec, Judge()
        self.neighbor = edge.neighbor
        self.turns = 1 if codec is None else len(codec.message_bytes)
        self._tag = vector.tag
        self.buffer = buffer
        sizes = () if codec is None else codec.message_bytes
        self._sent = [_message(size) for size in sizes]
        self._received = [_message(size) for size in sizes]
        self._payloads_sent = [message[:size] for message, size in zip(self._sent, sizes, strict=True)]
        self._payloads_received = [message[:size] for message, size in zip(self._received, sizes, strict=True)]
        self.round_bytes = sum(map(len, self._received)) if sizes else vector.message_bytes
        """Bytes that one round sends over this link, headers and padding included; as many arrive."""
        self._mine: Header | None = None
        self.swap: Swap | None = None

    def post(self, header: Header, snapshot: FlatBuffer) -> None:
        """Send this turn's message of a round and be ready for the neighbour's.

        Args:
            header: of the message. When it says void, nothing is published but that.
            snapshot: what is published, with the header in its message; it must stay untouched until the round is over.
        """
        turn = header.turn
        if header.void:
            message = torch.zeros_like(self._incoming(turn))
            header.write(message)
        elif self.codec is None:
            # All links of a round send this one message; written again, it would change under those on their way.
            message = snapshot.message
        else:
            message = self._sent[turn]
            self.codec.encode(turn, header.number, snapshot, self._payloads_sent, self._payloads_received)
            header.write(message)
        self._mine = header
        self.swap = self.edge.swap(message, self._incoming(turn), self._tag)

    def increment(
        self, number: int, snapshot: FlatBuffer, weight: float, target: FlatBuffer
    ) -> tuple[float, str | None]:
        """Overwrite `target` with `weight` times the difference that the finished round yields.

        Returns:
            The norm of the difference, and why it must not be added, if it must not.
        """
        assert self._mine is not None
        its = Header.read(self._incoming(-1))
        distance = math.nan
        if its is None or not self._mine.fits(its) or its.void or self._mine.void:
            target.zero_()
        elif self.codec is None:
            assert self.buffer is not None
            distance = target.set_difference_(self.buffer, snapshot, weight)
        else:
            self.codec.decode(number, snapshot, self._payloads_sent, self._payloads_received, target)
            distance = target.weigh_(weight)
        reason = self.judge.verdict(self._mine, its, distance)
        if reason is not None and self.codec is not None:
            self.codec.reset()
        return distance, reason

    def expect_next(self) -> None:
        """What the last round yielded is no longer needed: let the next round's first message arrive."""
        self.edge.expect(self._incoming(0), self._tag)

    def neighbor_is_to_blame(self, snapshot: FlatBuffer, weight: float, increment: FlatBuffer) -> bool | None:
        """Whose fault a rejected round is, as far as both ends can agree; `None` where they cannot.

        Whoever sees that its own snapshot is sound knows that it was the other; with an outlier it is the one whose
        norm is farther from what its header said or, if neither is, nobody knows.

        Args:
            snapshot: what this worker published.
            weight: as it was given to `increment`.
            increment: what that wrote; overwritten.
        """
        assert self._mine is not None
        its = Header.read(self._incoming(-1))
        own = snapshot.norm()
        if self._mine.void or not math.isfinite(own):
            return False
        if its is None or its.void or not math.isfinite(increment.norm()):
            return True
        other = increment.mul_(1 / weight).add_(snapshot).norm()
        away, its_away = abs(own - self._mine.norm), abs(other - its.norm)
        return None if max(away, its_away) < 0.1 * min(own, other) else its_away > away

    def _incoming(self, turn: int) -> Tensor:
        """Where a turn's message arrives."""
        if self.codec is not None:
            return self._received[turn]
        assert self.buffer is not None
        return self.buffer.message

    def state_dict(self) -> dict[str, Any]:
        """What the codec and the judge remember."""
        return {
            "codec": None if self.codec is None else self.codec.state_dict(),
            "judge": self.judge.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.judge.load_state_dict(state["judge"])
        if self.codec is not None and state["codec"] is not None:
            self.codec.load_state_dict(state["codec"])


def _message(size: int) -> Tensor:
    """Memory for one message: the payload, padded to whole header sizes, and the header behind it."""
    return torch.zeros(-(-size // HEADER_BYTES) * HEADER_BYTES + HEADER_BYTES, dtype=torch.uint8)
