"""A fraction of the bytes: each round the two ends swap the same random coordinates, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_decgan.gossip.compression.base import CHUNK_ELEMENTS, Codec, StatelessCodec, lay_out, seeded
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["RandomSubset"]

# A section is cut into at most so many runs of neighbouring coordinates, and runs are drawn: permuting millions of
# coordinates would cost more than all the rest of a round. Every coordinate has the same chance; only the few
# coordinates of a run (84 of a float32 model of 11 MB) are drawn together.
_MOST_RUNS = CHUNK_ELEMENTS


@dataclass(frozen=True)
class RandomSubset:
    """Swap the same random part of the coordinates at both ends, a new one every round, and leave the rest alone.

        difference[c] = s_neighbor[c] - s_own[c]    for drawn coordinates c, exactly;    0 elsewhere

    Both ends draw from (seed, edge, round number), so no index travels. In every round every coordinate is drawn with
    the chance `fraction`, so on average a round mixes as one with the edge's weight times `fraction`: consensus takes
    about 1 / `fraction` times as many rounds, with no noise once it is reached. There is no memory of earlier rounds.

    Args:
        fraction: the share of the coordinates, in (0, 1]; also, nearly, the share of the bytes.

    Raises:
        TypeError: `fraction` is not a number.
        ValueError: `fraction` is not in (0, 1].

    Example:
        >>> vector = FlatVector([("weight", torch.zeros(1000))])
        >>> RandomSubset(fraction=0.1).codec(vector, edge=(0, 1), worker=0, seed=0).message_bytes
        (400,)

    Source: SPARTA, "Improving the Efficiency of Distributed Training using Sparse Parameter Averaging" (2025), which
    averages a random 0.05 to 0.5 % of the parameters every step among all workers; here an edge has its own draw.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float):
            raise TypeError(
                "RandomSubset(fraction=...) must be a number above 0 and at most 1, found"
                f" {self.fraction!r} ({type(self.fraction).__name__})"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"RandomSubset(fraction=...) must be a number above 0 and at most 1, found {self.fraction}"
            )

    def codec(self, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int) -> Codec:
        """The codec of one end of an edge."""
        return _SubsetCodec(self.fraction, vector, edge, seed)


@dataclass(frozen=True)
class _Draw:
    """How the coordinates of one section are drawn.

    Attributes:
        count: coordinates in the section.
        run: coordinates drawn together.
        runs: runs in the section; the last may reach beyond its end.
        taken: runs drawn a round: `fraction * runs`, rounded up.
        last_counts: the chance with which the last run drawn counts, so that every coordinate's chance is `fraction`.
    """

    count: int
    run: int
    runs: int
    taken: int
    last_counts: float

    @classmethod
    def plan(cls, count: int, fraction: float) -> _Draw:
        run = max(1, -(-count // _MOST_RUNS))
        runs = -(-count // run)
        wanted = fraction * runs
        taken = math.ceil(wanted - 1e-9)  # not one more run because 0.7 * 10 is 7.000000000000001
        return cls(count, run, runs, taken, min(1.0, 1.0 - (taken - wanted)))

    @property
    def chunk(self) -> int:
        """Coordinates worked on at a time: whole runs."""
        return self.run * max(1, CHUNK_ELEMENTS // self.run)

    def coordinates(self, generator: torch.Generator) -> tuple[list[Tensor], int]:
        """The drawn coordinates in chunks, and how many at the end do not count this time."""
        runs = torch.randperm(self.runs, generator=generator)[: self.taken, None]
        inside = torch.arange(self.run)
        # Beyond the end stands the last coordinate again: it is written twice, with the same value.
        drawn = [
            (some * self.run + inside).view(-1).clamp_(max=self.count - 1)
            for some in runs.split(self.chunk // self.run)
        ]
        last_counts = float(torch.rand((), generator=generator)) < self.last_counts
        return drawn, 0 if last_counts else self.run


class _SubsetCodec(StatelessCodec):
    def __init__(self, fraction: float, vector: FlatVector, edge: tuple[int, int], seed: int) -> None:
        sections = vector.new_buffer().sections
        self._draws = [_Draw.plan(section.numel(), fraction) for section in sections]
        self._parts, size_bytes = lay_out(
            (section.dtype, draw.taken * draw.run) for section, draw in zip(sections, self._draws, strict=True)
        )
        self.message_bytes: tuple[int, ...] = (size_bytes,)
        self._edge, self._seed = edge, seed
        self._drawn: tuple[int, list[tuple[list[Tensor], int]]] | None = None

    def encode(
        self, turn: int, number: int, snapshot: FlatBuffer, sent: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        for place, (drawn, _) in enumerate(self._draw(number)):
            for coordinates, message in zip(drawn, self._chunks(sent[turn], place), strict=True):
                torch.index_select(snapshot.sections[place], 0, coordinates, out=message)

    def decode(
        self,
        number: int,
        snapshot: FlatBuffer,
        sent: Sequence[Tensor],
        received: Sequence[Tensor],
        difference: FlatBuffer,
    ) -> None:
        for place, (drawn, not_counting) in enumerate(self._draw(number)):
            section, left = difference.sections[place], self._parts[place].count - not_counting
            for piece in section.split(CHUNK_ELEMENTS):
                piece.zero_()
            messages = self._chunks(received[0], place), self._chunks(sent[0], place)
            for coordinates, theirs, mine in zip(drawn, *messages, strict=True):
                section.index_copy_(0, coordinates[:left], (theirs - mine)[:left])
                left = max(0, left - len(mine))

    def _chunks(self, message: Tensor, place: int) -> tuple[Tensor, ...]:
        return self._parts[place].of(message).split(self._draws[place].chunk)

    def _draw(self, number: int) -> list[tuple[list[Tensor], int]]:
        if self._drawn is None or self._drawn[0] != number:
            generator = seeded("random subset", self._seed, *self._edge, number)
            self._drawn = number, [draw.coordinates(generator) for draw in self._draws]
        return self._drawn[1]
