"""A hundredth of the bytes: power iteration on the difference of the two ends, matrix by matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_decgan.checks import check_integer
from lightning_decgan.gossip.compression.base import Codec, Part, lay_out, seeded, subtract
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["PowerGossip", "orthonormal_rows"]

# A direction of which less than this is new, relative to its size, is nothing but the rounding errors of float64.
_DEPENDENT = 1e-12


@dataclass(frozen=True)
class PowerGossip:
    """Send what each tensor's difference does to a few directions, and learn the directions that matter.

    A tensor of two or more dimensions is taken as a matrix S of shape `(shape[0], -1)`. For the difference D of the
    two ends, S of the higher worker minus S of the lower, one message yields one step of a power iteration:

        right step:  both send S Q'   so both know P = D Q',      D is about P Q'^T,   P' = orth(P) comes next
        left step:   both send S^T P' so both know Q = D^T P',    D is about P' Q^T,   Q' = orth(Q) comes next

    with orthonormal Q', P' of `rank` columns, the first drawn from (seed, edge). Steps alternate and go on from round
    to round, so the directions follow a difference that changes slowly. What a round applies is its last step's
    approximation: an orthogonal projection of D, which is exact when the directions span the rows (columns) of D, and
    never larger than D. There is nothing to tune, and no copy of the parameters is kept.

    Vectors, and matrices that two such factors would not make smaller, are sent as they are, once a round. About half
    of the matrices begin with a left step: so all messages of a run are equally long, up to a little padding.
    Factors of float16 and bfloat16 tensors are computed and sent in float32, those of complex tensors as of real
    ones with twice the columns. Both ends compute the directions from the same bits, so they have to compute alike:
    on processors of different kinds the last bits of a direction may differ, and the mean moves by as much.

    Args:
        rank: columns of the factors.
        iterations: steps, hence messages, a round. Latency counts as often.

    Raises:
        TypeError: `rank` or `iterations` is no integer.
        ValueError: `rank` or `iterations` is below 1.

    Example:
        >>> vector = FlatVector([("weight", torch.zeros(200, 100)), ("bias", torch.zeros(200))])
        >>> PowerGossip(rank=1).codec(vector, edge=(0, 1), worker=0, seed=0).message_bytes  # of 80,800
        (1632,)

    Source: Vogels, Karimireddy, Jaggi, "PowerGossip: Practical Low-Rank Communication Compression in Decentralized
    Deep Learning" (NeurIPS 2020, arXiv:2008.01425), Algorithm 1 and section 3.
    """

    rank: int = 1
    iterations: int = 1

    def __post_init__(self) -> None:
        check_integer("PowerGossip(rank=...)", self.rank, 1)
        check_integer("PowerGossip(iterations=...)", self.iterations, 1)

    def codec(self, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int) -> Codec:
        """The codec of one end of an edge."""
        return _PowerCodec(self, vector, edge, worker, seed)


@dataclass(frozen=True)
class _Matrix:
    """One tensor that travels as factors.

    Attributes:
        place: which tensor of the vector.
        sizes: rows and columns (of real numbers).
        begins_left: whether its first step is a left one.
    """

    place: int
    sizes: tuple[int, int]
    begins_left: bool

    def is_left(self, step: int) -> bool:
        return self.begins_left != bool(step % 2)

    def factor_size(self, step: int) -> int:
        """Elements of one direction's image, which is what travels: a row of S^T P' or of S Q'."""
        return self.sizes[1] if self.is_left(step) else self.sizes[0]

    def basis_size(self, step: int) -> int:
        return self.factor_size(step + 1)

    def of(self, buffer: FlatBuffer) -> Tensor:
        view = buffer.views[self.place]
        return (torch.view_as_real(view) if view.is_complex() else view).view(self.sizes)


class _Factors:
    """The power iterations of all matrices that are computed in one dtype. All factors are kept as rows."""

    def __init__(self, matrices: list[_Matrix], dtype: torch.dtype, rank: int, key: tuple[int, ...]) -> None:
        self.matrices, self.dtype, self._rank, self._key = matrices, dtype, rank, key
        self.count = rank * max(sum(matrix.factor_size(step) for matrix in matrices) for step in (0, 1))
        self.step = 0
        self.bases = [self.draw(matrix) for matrix in matrices]

    def draw(self, matrix: _Matrix) -> Tensor:
        """Random directions, the same at both ends."""
        generator = seeded("power gossip", *self._key, matrix.place, self.step % 2)
        shape = (self._rank, matrix.basis_size(self.step))
        return orthonormal_rows(torch.randn(shape, generator=generator, dtype=torch.float64)).to(self.dtype)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The factors of all matrices in this step's message."""
        sizes = [self._rank * matrix.factor_size(self.step) for matrix in self.matrices]
        return [factor.view(self._rank, -1) for factor in flat[: sum(sizes)].split(sizes)]

    def project(self, snapshot: FlatBuffer, message: Tensor) -> None:
        """Fill this step's message: what the snapshot does to the present directions."""
        for matrix, basis, image in zip(self.matrices, self.bases, self.split(message), strict=True):
            own = matrix.of(snapshot).to(self.dtype)
            own = own.t() if matrix.is_left(self.step) else own
            # Row by row, here and below: a product with a vector runs on this thread, one of matrices waits for others.
            for direction, result in zip(basis, image, strict=True):
                torch.mv(own, direction, out=result)

    def expand(self, images: Tensor, difference: FlatBuffer) -> None:
        """Write the low-rank approximations that the differences of images stand for."""
        for matrix, basis, image in zip(self.matrices, self.bases, self.split(images), strict=True):
            left, right = (basis, image) if matrix.is_left(self.step) else (image, basis)
            target = matrix.of(difference)
            product = target if target.dtype == self.dtype else torch.empty(matrix.sizes, dtype=self.dtype)
            torch.mm(left[:1].t(), right[:1], out=product)
            for place in range(1, self._rank):
                product.addmm_(left[place : place + 1].t(), right[place : place + 1])
            if product is not target:
                target.copy_(product)

    def advance(self, images: Tensor) -> None:
        """Turn the images of the higher end minus the lower's into the directions of the next step."""
        factors = self.split(images)
        self.step += 1
        for place, (matrix, image) in enumerate(zip(self.matrices, factors, strict=True)):
            wide = image.to(torch.float64)
            # No difference (as at the start, when all workers are equal) has no direction; nor has one with NaN in it.
            usable = 0 < float(torch.linalg.vector_norm(wide)) < float("inf")
            self.bases[place] = orthonormal_rows(wide).to(self.dtype) if usable else self.draw(matrix)


class _PowerCodec:
    def __init__(
        self, settings: PowerGossip, vector: FlatVector, edge: tuple[int, int], worker: int, seed: int
    ) -> None:
        views = vector.new_buffer().views
        self._settings, self._key = settings, (seed, *edge)
        self._sign = 1.0 if worker == min(edge) else -1.0  # theirs - own is higher - lower at the lower worker
        by_dtype = {
            dtype: [i for i, view in enumerate(views) if _wide(view) == dtype and _pays(view, settings.rank)]
            for dtype in (torch.float64, torch.float32)
        }
        self._matrices = {
            dtype: _balanced({i: _sizes(views[i]) for i in places}) for dtype, places in by_dtype.items() if places
        }
        small = [i for i in range(len(views)) if not any(i in places for places in by_dtype.values())]
        self._small = {
            dtype: [i for i in small if views[i].dtype == dtype] for dtype in {views[i].dtype: None for i in small}
        }
        self._small_sizes = {i: views[i].numel() for i in small}
        self._factors = self._begin()
        of_factors = [(factors.dtype, factors.count) for factors in self._factors]
        of_small = [(dtype, sum(self._small_sizes[i] for i in places)) for dtype, places in self._small.items()]
        parts, first_bytes = lay_out(of_factors + of_small)
        _, next_bytes = lay_out(of_factors)
        self._parts, self._small_parts = parts[: len(of_factors)], parts[len(of_factors) :]
        self.message_bytes: tuple[int, ...] = (first_bytes, *[next_bytes] * (settings.iterations - 1))

    def encode(
        self, turn: int, number: int, snapshot: FlatBuffer, sent: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        for part, factors in zip(self._parts, self._factors, strict=True):
            if turn:
                factors.advance(_subtract(part, received[turn - 1], sent[turn - 1]).mul_(self._sign))
            factors.project(snapshot, part.of(sent[turn]))
        if not turn:
            for part, places in zip(self._small_parts, self._small.values(), strict=True):
                torch._foreach_copy_(self._split_small(part.of(sent[0]), places), _flat(snapshot, places))

    def decode(
        self,
        number: int,
        snapshot: FlatBuffer,
        sent: Sequence[Tensor],
        received: Sequence[Tensor],
        difference: FlatBuffer,
    ) -> None:
        for part, factors in zip(self._parts, self._factors, strict=True):
            images = _subtract(part, received[-1], sent[-1])
            factors.expand(images, difference)
            factors.advance(images.mul_(self._sign))
        for part, places in zip(self._small_parts, self._small.values(), strict=True):
            exact = _subtract(part, received[0], sent[0])
            torch._foreach_copy_(_flat(difference, places), self._split_small(exact, places))

    def reset(self) -> None:
        self._factors = self._begin()

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": [factors.step for factors in self._factors],
            "bases": [[basis.clone() for basis in factors.bases] for factors in self._factors],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        steps = state.get("steps", [])
        if len(steps) == len(state.get("bases", [])) == len(self._factors):
            expected = [
                [(factors.dtype, (self._settings.rank, matrix.basis_size(step))) for matrix in factors.matrices]
                for factors, step in zip(self._factors, steps, strict=True)
            ]
            if [[(basis.dtype, tuple(basis.shape)) for basis in bases] for bases in state["bases"]] == expected:
                for factors, step, bases in zip(self._factors, steps, state["bases"], strict=True):
                    factors.step, factors.bases = step, [basis.clone() for basis in bases]
                return
        raise ValueError(
            f"the state in the checkpoint belongs to another compression than {self._settings} or to other parameters"
        )

    def _begin(self) -> list[_Factors]:
        rank = self._settings.rank
        return [_Factors(matrices, dtype, rank, self._key) for dtype, matrices in self._matrices.items()]

    def _split_small(self, flat: Tensor, places: list[int]) -> list[Tensor]:
        return list(flat.split([self._small_sizes[i] for i in places]))


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Orthonormal rows that span what the given rows (fewer than columns, float64, not all zero) span.

    They are as many also when the given rows depend on each other: a row that adds nothing is replaced by one that
    does. Gram-Schmidt, done twice for full accuracy.

    Example:
        >>> orthonormal_rows(torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64))
        tensor([[0.6000, 0.8000, 0.0000]], dtype=torch.float64)
    """
    rows = rows / torch.linalg.vector_norm(rows)
    for place, row in enumerate(rows):
        before, size = rows[:place], float(torch.linalg.vector_norm(row))
        if _remove(before, row) <= _DEPENDENT * size:
            # The axis that the rows so far cover least is never within their span.
            row.zero_()[before.square().sum(0).argmin()] = 1.0
            _remove(before, row)
        row.div_(torch.linalg.vector_norm(row))
    return rows


def _remove(basis: Tensor, row: Tensor) -> float:
    """Make a row orthogonal to a basis, in place; returns the norm of what is left of it."""
    for _ in range(2 if len(basis) else 0):
        row.sub_(((basis * row).sum(1, keepdim=True) * basis).sum(0))
    return float(torch.linalg.vector_norm(row))


def _wide(view: Tensor) -> torch.dtype:
    """The dtype in which a tensor's factors are computed and sent."""
    return torch.float64 if view.dtype in (torch.float64, torch.complex128) else torch.float32


def _sizes(view: Tensor) -> tuple[int, int]:
    rows = view.shape[0]
    return rows, view.numel() // rows * (2 if view.is_complex() else 1)


def _pays(view: Tensor, rank: int) -> bool:
    """Whether a right and a left factor take fewer bytes than the tensor."""
    if view.dim() < 2 or not view.numel():
        return False
    return rank * sum(_sizes(view)) * _wide(view).itemsize < view.numel() * view.element_size()


def _balanced(sizes: Mapping[int, tuple[int, int]]) -> list[_Matrix]:
    """Choose the matrices that begin with a left step, so that messages of even and odd steps are equally long."""
    surplus = 0  # of the even steps' messages over the odd ones'
    matrices = []
    for place, (rows, columns) in sorted(sizes.items(), key=lambda item: -abs(item[1][0] - item[1][1])):
        begins_left = (columns > rows) == (surplus < 0)
        surplus += columns - rows if begins_left else rows - columns
        matrices.append(_Matrix(place, (rows, columns), begins_left))
    return sorted(matrices, key=lambda matrix: matrix.place)


def _subtract(part: Part, received: Tensor, sent: Tensor) -> Tensor:
    return subtract(part.of(received), part.of(sent), out=torch.empty(part.count, dtype=part.dtype))


def _flat(buffer: FlatBuffer, places: Sequence[int]) -> list[Tensor]:
    return [buffer.views[i].view(-1) for i in places]
