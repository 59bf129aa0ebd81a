"""Half the bytes at no cost worth speaking of: parameters travel as bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_decgan.gossip.compression.base import CHUNK_ELEMENTS, Codec, StatelessCodec, as_real, lay_out, subtract
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["BFloat16"]


@dataclass(frozen=True)
class BFloat16:
    """Send every number as a bfloat16: half the bytes of float32, a quarter of float64.

        difference = decoded(b_neighbor) - decoded(b_own),    b = bfloat16(s)

    The subtraction is done in the dtype of the parameters. float16 and bfloat16 parameters are sent as they are, and
    complex ones as pairs of real ones. There is no memory of earlier rounds.

    Differences below a parameter's own rounding (2^-9 of its size) are seen coarsely or not at all, so workers come to
    agree up to that and no further; the mean does not move. Use `Int8` where that is too coarse.

    Example:
        >>> vector = FlatVector([("weight", torch.full((1000,), 3.0))])
        >>> BFloat16().codec(vector, edge=(0, 1), worker=0, seed=0).message_bytes
        (2000,)
    """

    def codec(self, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int) -> Codec:
        """The codec of one end; it depends on the layout alone."""
        return _BFloat16Codec(vector)


class _BFloat16Codec(StatelessCodec):
    def __init__(self, vector: FlatVector) -> None:
        sections = [as_real(section) for section in vector.new_buffer().sections]
        self._parts, size_bytes = lay_out(
            (torch.bfloat16 if section.element_size() > 2 else section.dtype, section.numel()) for section in sections
        )
        self.message_bytes: tuple[int, ...] = (size_bytes,)
        self._scratch = {
            section.dtype: torch.empty(min(section.numel(), CHUNK_ELEMENTS), dtype=section.dtype)
            for section in sections
        }

    def encode(
        self, turn: int, number: int, snapshot: FlatBuffer, sent: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        for part, section in zip(self._parts, snapshot.sections, strict=True):
            chunks = (flat.split(CHUNK_ELEMENTS) for flat in (part.of(sent[turn]), as_real(section)))
            for message, own in zip(*chunks, strict=True):
                message.copy_(own)

    def decode(
        self,
        number: int,
        snapshot: FlatBuffer,
        sent: Sequence[Tensor],
        received: Sequence[Tensor],
        difference: FlatBuffer,
    ) -> None:
        for part, section in zip(self._parts, difference.sections, strict=True):
            target = as_real(section)
            if part.dtype == target.dtype:
                subtract(part.of(received[0]), part.of(sent[0]), out=target)
                continue
            scratch = self._scratch[target.dtype]
            chunks = (flat.split(CHUNK_ELEMENTS) for flat in (target, part.of(received[0]), part.of(sent[0])))
            for result, theirs, mine in zip(*chunks, strict=True):
                # Subtracting in bfloat16 would round the difference once more.
                result.copy_(theirs).sub_(scratch[: mine.numel()].copy_(mine))
