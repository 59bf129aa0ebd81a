"""Tensors of any dtype and shape as one flat buffer, so that one gossip is one message per neighbour.

At high latency the number of messages costs more than the bytes: both players' parameters, whatever their dtypes,
travel as the bytes of one `FlatBuffer`. This module copies and adds; it never decides when, and never talks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_decgan.gossip.header import HEADER_BYTES

__all__ = ["FlatBuffer", "FlatVector", "describe_tensors"]

# Every dtype's section begins at a multiple of this many bytes, so that its typed view is aligned.
_ALIGNMENT_BYTES = 64
# Three pieces of this many elements stay in a core's cache, where several operations in a row cost as much as one. What
# a gossip costs the processor is ways through memory: 11 MB took 3 ms each way beside three other workers.
_PIECE_ELEMENTS = 65_536


def describe_tensors(named_tensors: Iterable[tuple[str, Tensor]], kind: str) -> list[str]:
    """One line per tensor with its name, shape and dtype: what workers compare before they mix anything.

    Example:
        >>> describe_tensors([("weight", torch.zeros(2, 3))], "parameter")
        ['parameter weight: shape (2, 3), float32']
    """
    return [
        f"{kind} {name}: shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in named_tensors
    ]


@dataclass(frozen=True)
class FlatBuffer:
    """Memory for one flat vector, seen four ways.

    Attributes:
        message: the whole memory, `uint8`, with room for a header at its end: what travels uncompressed.
        bytes: the same without the header.
        sections: the same memory as one flat tensor per dtype, what arithmetic is done on.
        views: the same memory as one tensor per source tensor, in the vector's order, in the source's shape.
    """

    message: Tensor
    bytes: Tensor
    sections: tuple[Tensor, ...]
    views: tuple[Tensor, ...]

    def copy_(self, other: FlatBuffer) -> FlatBuffer:
        """Overwrite this buffer with another of the same layout."""
        self.bytes.copy_(other.bytes)
        return self

    def zero_(self) -> FlatBuffer:
        """Set every element to zero."""
        self.bytes.zero_()
        return self

    def add_(self, other: FlatBuffer, alpha: float = 1.0) -> FlatBuffer:
        """`self += alpha * other`, in every section."""
        for mine, its in zip(self.sections, other.sections, strict=True):
            mine.add_(its, alpha=alpha)
        return self

    def sub_(self, other: FlatBuffer) -> FlatBuffer:
        """`self -= other`, in every section."""
        for mine, its in zip(self.sections, other.sections, strict=True):
            mine.sub_(its)
        return self

    def mul_(self, factor: float) -> FlatBuffer:
        """`self *= factor`, in every section."""
        for mine in self.sections:
            mine.mul_(factor)
        return self

    def norm(self) -> float:
        """Euclidean norm; NaN or infinite if any element is, or if float32 cannot hold it.

        Example:
            >>> vector = FlatVector([("x", torch.tensor([3.0])), ("y", torch.tensor([4.0], dtype=torch.float64))])
            >>> vector.write(vector.new_buffer()).norm()
            5.0
        """
        return sum(map(_square, self.sections)) ** 0.5

    def set_difference_(self, theirs: FlatBuffer, mine: FlatBuffer, weight: float = 1.0) -> float:
        """`self = weight * (theirs - mine)`, in one way through memory; `self` may be one of the two.

        Both ends of an edge subtract the same two snapshots, and subtraction and multiplication by a weight are odd in
        floating point, so what the two ends get is opposite and the mean of the two stays.

        Returns:
            The norm of `theirs - mine`.

        Example:
            >>> vector = FlatVector([("x", torch.tensor([3.0, 5.0]))])
            >>> mine, theirs = vector.write(vector.new_buffer()), vector.write(vector.new_buffer())
            >>> theirs.sections[0].add_(torch.tensor([3.0, -4.0])).tolist()
            [6.0, 1.0]
            >>> mine.set_difference_(theirs, mine, weight=0.5), mine.sections[0].tolist()
            (5.0, [1.5, -2.0])
        """
        squares = 0.0
        for result, its, own in _pieces(self, theirs, mine):
            torch.sub(its, own, out=result)
            squares += _square(result)
            result.mul_(weight)
        return squares**0.5

    def weigh_(self, weight: float) -> float:
        """`self *= weight`, in one way through memory; returns the norm of before."""
        squares = 0.0
        for (piece,) in _pieces(self):
            squares += _square(piece)
            piece.mul_(weight)
        return squares**0.5


class FlatVector:
    """A fixed list of tensors that can be copied out to, and incremented from, one flat buffer.

    The tensors' storages are never replaced: `write` reads them and `add_` changes them in place.

    Args:
        named_tensors: names and floating-point or complex tensors, in an order that is the same on every worker.
        on_device: keep the buffers where the tensors are, for edges that send from there (NCCL); else they are in host
            memory.
        lookahead: what to add to a tensor to reach the point that is gossiped (the anchor), or `None` where the tensor
            is that point. Optimistic optimizers take gradients at `Z = X - u`; for their parameters this returns `u`.

    Raises:
        TypeError: a tensor is neither floating-point nor complex; an average of it would mean nothing.
        ValueError: a name or a tensor occurs twice, or the tensors are on several devices.

    Example:
        >>> weight, bias = torch.ones(2, 2), torch.zeros(3, dtype=torch.float64)
        >>> vector = FlatVector([("weight", weight), ("bias", bias)])
        >>> buffer = vector.write(vector.new_buffer())
        >>> [tuple(section.shape) for section in buffer.sections]
        [(4,), (3,)]
        >>> vector.add_(buffer)
        >>> weight
        tensor([[2., 2.],
                [2., 2.]])
    """

    def __init__(
        self,
        named_tensors: Iterable[tuple[str, Tensor]],
        lookahead: Callable[[Tensor], Tensor | None] | None = None,
        on_device: bool = False,
    ) -> None:
        named = list(named_tensors)
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.tensors: tuple[Tensor, ...] = tuple(tensor for _, tensor in named)
        self._lookahead = lookahead
        for name, tensor in named:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                raise TypeError(
                    f"tensor '{name}' has dtype {tensor.dtype}; only floating-point and complex tensors can be averaged"
                )
        if len(set(self.names)) != len(named) or len({id(tensor) for tensor in self.tensors}) != len(named):
            raise ValueError("every name and every tensor of a flat vector must occur once")
        if len({tensor.device for tensor in self.tensors}) > 1:
            found = ", ".join(sorted({str(tensor.device) for tensor in self.tensors}))
            raise ValueError(f"the tensors of a flat vector must be on one device, found {found}")
        self.layout = tuple(describe_tensors(named, "tensor"))
        self._slots, self._sections, self.size_bytes = _plan(self.tensors)
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        elsewhere = self.device.type != "cpu"
        self._device_copies = _DeviceCopies(self) if elsewhere and not on_device else None
        self._side_stream = _SideStream(self.device) if elsewhere and on_device else None

    @property
    def tag(self) -> int:
        """A number in [0, 2^31) made of names, shapes, dtypes and order: vectors that may be swapped share it.

        A message whose tag nobody waits for is never delivered, so two workers whose layouts differ meet their
        deadline and its error; with one tag for all, gloo ends the process when sizes differ.
        """
        return int.from_bytes(hashlib.sha256("\n".join(self.layout).encode()).digest()[:4]) >> 1

    @property
    def message_bytes(self) -> int:
        """The length of a buffer with its padding and the room for a header."""
        return -(-self.size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES + HEADER_BYTES

    def rebind(self, tensors: Sequence[Tensor]) -> None:
        """Stand for other tensors of the same layout from now on: user code may rebind a buffer to a new tensor."""
        if tuple(describe_tensors(zip(self.names, tensors, strict=True), "tensor")) != self.layout:
            raise ValueError("tensors can only be replaced by tensors of the same shapes and dtypes")
        self.tensors = tuple(tensors)

    def new_buffer(self) -> FlatBuffer:
        """A buffer of zeros: in host memory (pinned when the tensors live on a GPU), or on their device."""
        return self._allocate(torch.device("cpu") if self._side_stream is None else self.device)

    def stream(self) -> AbstractContextManager[Any]:
        """Within it, what is computed on buffers does not queue up behind training; for the gossip thread."""
        return nullcontext() if self._side_stream is None else self._side_stream.stream

    @torch.no_grad()
    def write(self, buffer: FlatBuffer) -> FlatBuffer:
        """Copy the anchors (the tensors plus their lookahead) into a buffer and return it.

        From an accelerator the copy goes on behind the next batch; `wait_until_written` ends when it is there.
        """
        target = buffer if self._device_copies is None else self._device_copies.outgoing()
        if self.tensors:
            torch._foreach_copy_(target.views, self.tensors)
        if self._lookahead is not None:
            ahead = [(view, self._lookahead(t)) for view, t in zip(target.views, self.tensors, strict=True)]
            moved = [(view, update) for view, update in ahead if update is not None]
            if moved:
                torch._foreach_add_([view for view, _ in moved], [update for _, update in moved])
        if self._device_copies is not None:
            self._device_copies.send(buffer)
        if self._side_stream is not None:
            self._side_stream.mark()
        return buffer

    def wait_until_written(self) -> None:
        """Wait until the last `write` is done; at once when the tensors are in host memory."""
        if self._device_copies is not None:
            self._device_copies.wait_until_sent()
        if self._side_stream is not None:
            self._side_stream.wait_for_mark()

    def prefetch(self, buffer: FlatBuffer) -> None:
        """Begin to bring a buffer to the tensors' device, for the `add_` that follows; the gossip thread calls this."""
        if self._device_copies is not None:
            self._device_copies.fetch(buffer)
        if self._side_stream is not None:
            self._side_stream.stream.synchronize()

    @torch.no_grad()
    def add_(self, buffer: FlatBuffer) -> None:
        """Add a buffer to the tensors in place; the anchors move by the same amount."""
        source = buffer if self._device_copies is None else self._device_copies.incoming(buffer)
        if self.tensors:
            torch._foreach_add_(self.tensors, source.views)
        if self._device_copies is not None:
            self._device_copies.done()

    def _allocate(self, device: torch.device) -> FlatBuffer:
        pin = device.type == "cpu" and self.device.type == "cuda"
        memory = torch.zeros(self.message_bytes, dtype=torch.uint8, device=device, pin_memory=pin)
        sections = tuple(
            memory[start : start + count * dtype.itemsize].view(dtype) for dtype, start, count in self._sections
        )
        views = tuple(
            sections[section][start : start + tensor.numel()].view(tensor.shape)
            for (section, start), tensor in zip(self._slots, self.tensors, strict=True)
        )
        return FlatBuffer(memory, memory[: self.size_bytes], sections, views)


class _SideStream:
    """A stream for gossip on buffers that stay on the device, and the moment at which training has written one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream = torch.Stream(device=device)
        self._written = torch.Event(device=device)

    def mark(self) -> None:
        self._written.record(torch.accelerator.current_stream(self._device))

    def wait_for_mark(self) -> None:
        self._written.synchronize()


class _DeviceCopies:
    """Crossing between an accelerator and the host on a stream of its own, so that it hides behind compute.

    The many small copies stay on the device, one large one crosses each way. Host memory is pinned, without which no
    copy of CUDA is asynchronous.
    """

    def __init__(self, vector: FlatVector) -> None:
        self._device = vector.device
        self._outgoing, self._incoming = vector._allocate(vector.device), vector._allocate(vector.device)
        self._stream = torch.Stream(device=vector.device)
        self._sent = torch.Event(device=vector.device)
        self._fetched, self._used = torch.Event(device=vector.device), torch.Event(device=vector.device)
        self._prefetched: FlatBuffer | None = None

    def outgoing(self) -> FlatBuffer:
        """Where to gather the tensors; what was there before has left."""
        torch.accelerator.current_stream(self._device).wait_event(self._sent)
        return self._outgoing

    def send(self, buffer: FlatBuffer) -> None:
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            buffer.bytes.copy_(self._outgoing.bytes, non_blocking=True)
            self._sent.record(self._stream)

    def wait_until_sent(self) -> None:
        self._sent.synchronize()
        self._fetched.synchronize()  # the host buffer that was fetched may be written again from here on

    def fetch(self, buffer: FlatBuffer) -> None:
        self._stream.wait_event(self._used)
        with self._stream:
            self._incoming.bytes.copy_(buffer.bytes, non_blocking=True)
            self._fetched.record(self._stream)
        self._prefetched = buffer

    def incoming(self, buffer: FlatBuffer) -> FlatBuffer:
        if self._prefetched is not buffer:  # restored from a checkpoint, or another buffer
            self.fetch(buffer)
        self._prefetched = None
        torch.accelerator.current_stream(self._device).wait_event(self._fetched)
        return self._incoming

    def done(self) -> None:
        """What was fetched has been added; the next fetch may overwrite it once the device has come so far."""
        self._used.record(torch.accelerator.current_stream(self._device))


def _pieces(*buffers: FlatBuffer) -> Iterator[tuple[Tensor, ...]]:
    """The same pieces of buffers of one layout, small enough for a processor's cache; on a device, whole sections."""
    for sections in zip(*(buffer.sections for buffer in buffers), strict=True):
        size = _PIECE_ELEMENTS if sections[0].device.type == "cpu" else max(sections[0].numel(), 1)
        yield from zip(*(section.split(size) for section in sections), strict=True)


def _square(flat: Tensor) -> float:
    """The square of a tensor's Euclidean norm."""
    real = torch.view_as_real(flat) if flat.is_complex() else flat
    wide = torch.float64 if real.dtype == torch.float64 else torch.float32
    norm = float(torch.linalg.vector_norm(real, dtype=wide))
    return norm * norm  # which overflows to infinity, as norm ** 2 does not


def _plan(
    tensors: Sequence[Tensor],
) -> tuple[list[tuple[int, int]], list[tuple[torch.dtype, int, int]], int]:
    """Where everything lies: per tensor (section, first element), per section (dtype, first byte, elements), bytes."""
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    counts = [0] * len(dtypes)
    slots = []
    for tensor in tensors:
        section = dtypes.index(tensor.dtype)
        slots.append((section, counts[section]))
        counts[section] += tensor.numel()
    sections, end = [], 0
    for dtype, count in zip(dtypes, counts, strict=True):
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        sections.append((dtype, start, count))
        end = start + count * dtype.itemsize
    return slots, sections, end
