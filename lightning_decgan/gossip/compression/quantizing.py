"""A quarter of the bytes: each end codes in eight bits what has changed since the other end last heard of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_decgan.checks import check_integer
from lightning_decgan.gossip.compression.base import CHUNK_ELEMENTS, Codec, as_real, lay_out, seeded
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["Int8"]

_LARGEST_BLOCK = 16_384

# A float32 to which this is added has no bits left for a fraction: it is rounded. (torch.round and torch.floor share
# their work out among threads from 2,048 elements on, and wait for them.)
_ROUNDER = 1.5 * 2**23

# Different numbers to round with.
_NOISE_LEVELS = 1 << 16

# The largest change of a block is coded as this: with noise of up to 1/2 added it still rounds to 127, the last int8.
_LARGEST_CODE = 126.99

# Scales below this are rounded up to it: an unchanged block needs no division by zero, and 1 / scale stays finite.
_SMALLEST_SCALE = 1e-30


@dataclass(frozen=True)
class Int8:
    """Send the change since the last message in eight bits a number, with one scale for every `block` numbers.

    Whole parameters in eight bits would drown the small steps of training in noise. So the two ends keep a copy
    (a *replica*) of what either has told the other so far, and a message codes what is new, as in CHOCO-SGD:

        codes = int8(round((s - replica) / scale + u)),    scale = max |s - replica| of the block / 126.99
        replica += scale * codes                            at both ends, with the same bits
        difference = replica_neighbor - replica_own

    What a round's rounding loses is part of the next round's change, so nothing is lost for good, and while a worker
    changes less and less its replicas become as exact as float32. The rounding is stochastic (`u` is uniform in
    (-1/2, 1/2)), so it is right on average. Both ends of an edge use the same `u` in a round: two equal snapshots get
    equal codes and the difference is exactly zero; otherwise part of the noise of the two cancels in the difference.

    Replicas start at zero at both ends, which needs no message to agree upon, whatever the two workers hold. The first
    round then codes the parameters themselves, each to within 1/127 of the largest in its block, the second round what
    that lost, the third what is left of it. They cost two vectors of memory for every edge that has been used (float64
    for float64 parameters, float32 for others), taken at the edge's first round. With neighbours that change from round
    to round every edge ever used keeps its two. A message takes one byte a number and four a block.

    Args:
        block: numbers that share a scale. Fewer follow the sizes of the changes better and cost more bytes.

    Raises:
        TypeError: `block` is no integer.
        ValueError: `block` is not in 1 ... 16384.

    Example:
        >>> vector = FlatVector([("weight", torch.zeros(1024))])
        >>> Int8().codec(vector, edge=(0, 1), worker=0, seed=0).message_bytes  # 1024 codes and 4 scales
        (1040,)

    Source: Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
    Communication" (ICML 2019, arXiv:1902.00340), Algorithm 1 with a step size of 1, one replica pair per edge.
    """

    block: int = 256

    def __post_init__(self) -> None:
        check_integer("Int8(block=...)", self.block, 1, _LARGEST_BLOCK)

    def codec(self, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int) -> Codec:
        """The codec of one end of an edge."""
        return _Int8Codec(self.block, vector, edge, seed)


class _Int8Codec:
    def __init__(self, block: int, vector: FlatVector, edge: tuple[int, int], seed: int) -> None:
        sections = [as_real(section) for section in vector.new_buffer().sections]
        self._replica_dtypes = [torch.float64 if s.dtype == torch.float64 else torch.float32 for s in sections]
        self._counts = [section.numel() for section in sections]
        self._block, self._edge, self._seed = block, edge, seed
        self._chunk = block * (CHUNK_ELEMENTS // block)
        pieces = [(torch.int8, count) for count in self._counts]
        pieces += [(torch.float32, -(-count // block)) for count in self._counts]
        parts, size_bytes = lay_out(pieces)
        self._parts = list(zip(parts[: len(sections)], parts[len(sections) :], strict=True))
        self.message_bytes: tuple[int, ...] = (size_bytes,)
        self._scratch = torch.empty(2, self._chunk)
        self._own: list[Tensor] = []
        self._theirs: list[Tensor] = []

    def encode(
        self, turn: int, number: int, snapshot: FlatBuffer, sent: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        self._take_memory()
        noise = noise_bank(self._seed)
        draw = seeded("int8", self._seed, *self._edge, number)
        for place, section in enumerate(snapshot.sections):
            chunks = self._chunks(as_real(section), self._own[place], place, sent[turn])
            starts = torch.randint(_NOISE_LEVELS, (len(chunks),), generator=draw).tolist()
            for start, (own, replica, codes, scales) in zip(starts, chunks, strict=True):
                self._quantize(own, replica, codes, scales, noise[start : start + self._chunk])

    def decode(
        self,
        number: int,
        snapshot: FlatBuffer,
        sent: Sequence[Tensor],
        received: Sequence[Tensor],
        difference: FlatBuffer,
    ) -> None:
        self._take_memory()
        for place, section in enumerate(difference.sections):
            owns = self._chunks(as_real(section), self._own[place], place, sent[0])
            theirs = self._chunks(as_real(section), self._theirs[place], place, received[0])
            for (target, own, codes, scales), (_, its, its_codes, its_scales) in zip(owns, theirs, strict=True):
                self._follow(own, codes, scales)
                self._follow(its, its_codes, its_scales)
                torch.sub(its, own, out=target)

    def reset(self) -> None:
        self._own, self._theirs = [], []

    def state_dict(self) -> dict[str, Any]:
        return {"own": [one.clone() for one in self._own], "theirs": [one.clone() for one in self._theirs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        expected = [(dtype, (count,)) for dtype, count in zip(self._replica_dtypes, self._counts, strict=True)]
        for name in ("own", "theirs"):
            found = [(one.dtype, tuple(one.shape)) for one in state.get(name, [])]
            if name not in state or found not in ([], expected):
                raise ValueError(
                    "the state in the checkpoint belongs to another compression than Int8, or to other parameters:"
                    f" '{name}' holds {found}, valid are {expected} and []"
                )
        self._own, self._theirs = ([one.clone() for one in state[name]] for name in ("own", "theirs"))

    def _take_memory(self) -> None:
        if not self._own:
            sizes = list(zip(self._counts, self._replica_dtypes, strict=True))
            self._own, self._theirs = ([torch.zeros(count, dtype=dtype) for count, dtype in sizes] for _ in range(2))

    def _chunks(self, section: Tensor, replica: Tensor, place: int, message: Tensor) -> list[tuple[Tensor, ...]]:
        """Section, replica, codes and scales, so many blocks at a time."""
        codes, scales = (part.of(message) for part in self._parts[place])
        flats = [flat.split(self._chunk) for flat in (section, replica, codes)]
        return list(zip(*flats, scales.split(self._chunk // self._block), strict=True))

    def _quantize(self, own: Tensor, replica: Tensor, codes: Tensor, scales: Tensor, noise: Tensor) -> None:
        count, blocks = own.numel(), (scales.numel(), self._block)
        change, sizes = (scratch[: scales.numel() * self._block] for scratch in self._scratch)
        torch.sub(own, replica, out=change[:count])
        change[count:].zero_()
        torch.amax(torch.abs(change, out=sizes).view(blocks), 1, out=scales)
        scales.mul_(1 / _LARGEST_CODE).clamp_(min=_SMALLEST_SCALE)  # NaN and infinity pass through, to both ends
        inverse = scales.reciprocal().unsqueeze(1)
        torch.addcmul(noise[: change.numel()].view(blocks), change.view(blocks), inverse, out=change.view(blocks))
        codes.copy_(change[:count].add_(_ROUNDER).sub_(_ROUNDER))

    def _follow(self, replica: Tensor, codes: Tensor, scales: Tensor) -> None:
        step = self._scratch[0, : scales.numel() * self._block]
        step[: codes.numel()].copy_(codes)
        # A product and a sum of their own, each rounded once: a fused one would give other bits on other processors.
        step.view(-1, self._block).mul_(scales.unsqueeze(1))
        replica.add_(step[: codes.numel()])


@functools.lru_cache(maxsize=4)
def noise_bank(seed: int) -> Tensor:
    """Numbers in (-1/2, 1/2) to round with: two periods of 65,536 levels in random order.

    Drawing a fresh number for each parameter costs more than all the rest of a round. A chunk of parameters is rounded
    with a stretch of the bank that begins at a freshly drawn place instead: over that draw every parameter meets every
    level equally often, so its rounding is unbiased, to 2^-17 of a code. Within a chunk no level occurs twice; chunks
    are rounded independently of each other.

    Example:
        >>> bank = noise_bank(0)
        >>> bool(-0.5 < bank.min()), bool(bank.max() < 0.5), float(bank[:65536].double().sum())
        (True, True, 0.0)
    """
    levels = torch.randperm(_NOISE_LEVELS, generator=seeded("int8 noise", seed))
    return ((levels + 0.5) / _NOISE_LEVELS - 0.5).repeat(2)
