"""The rare moments that concern every worker: a common start, the comparison that precedes it, the consensus.

Everything here is a collective of the default process group, and nothing here belongs on the training path. What comes
in is tensors; the few Python values that Lightning broadcasts travel through torch's restricted `weights_only` format,
so nothing received can run code.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_equal",
    "average",
    "broadcast_from_zero",
    "broadcast_value",
    "compare_workers",
    "gather_bytes",
    "wait_for_everybody",
]

# One collective never needs more than this many elements of extra memory.
_CHUNK_ELEMENTS = 1 << 22
_MAX_VALUE_BYTES = 1 << 28
_MAX_DIFFERENCES = 5


def _device() -> torch.device:
    """Where the default group wants its tensors."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _ready() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def broadcast_from_zero(tensors: Sequence[Tensor]) -> None:
    """Overwrite every tensor, in place, with worker 0's."""
    if not _ready():
        return
    for tensor in tensors:
        # Contiguous and detached: parameters may be expanded, strided or on another device than the group's.
        wire = tensor.detach().to(_device()).contiguous()
        # As bytes: the backends do not know every dtype that a buffer may have.
        dist.broadcast(wire.reshape(-1).view(torch.uint8), src=0)
        tensor.copy_(wire)


@torch.no_grad()
def average(tensors: Sequence[Tensor], count_in_distance: Sequence[bool]) -> tuple[list[Tensor], float, float]:
    """The mean of every tensor over the workers, and how far the workers are from it.

    Sums are taken in float64 (complex128), so that the mean of equal float32 values is exactly that value.

    Args:
        tensors: floating-point or complex tensors, the same shapes on every worker; they are left as they are.
        count_in_distance: for each tensor, whether it counts in the distance (parameters do, buffers do not).

    Returns:
        The means; the consensus distance `sqrt(mean_i |x_i - x_mean|^2)`; and that divided by `|x_mean|`.
    """
    means: list[Tensor] = []
    away, size = 0.0, 0.0
    workers = dist.get_world_size() if _ready() else 1
    for tensor, counted in zip(tensors, count_in_distance, strict=True):
        mean = torch.empty_like(tensor)
        wide_dtype = torch.complex128 if tensor.is_complex() else torch.float64
        flat, flat_mean = tensor.detach().reshape(-1), torch.empty(tensor.numel(), dtype=tensor.dtype)
        for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
            own = flat[start : start + _CHUNK_ELEMENTS].to(_device(), wide_dtype, copy=True)
            total = own.clone()
            if workers > 1:
                dist.all_reduce(torch.view_as_real(total) if total.is_complex() else total)
            total /= workers
            flat_mean[start : start + _CHUNK_ELEMENTS] = total.to("cpu", tensor.dtype)
            if counted:
                away += float((own - total).abs().square().sum())
                size += float(total.abs().square().sum())
        means.append(mean.copy_(flat_mean.view(tensor.shape)))
    squares = torch.tensor([away], dtype=torch.float64, device=_device() if workers > 1 else None)
    if workers > 1:
        dist.all_reduce(squares)
    distance = float((squares / workers).sqrt())
    return means, distance, distance / size**0.5 if size else 0.0


def gather_bytes(payload: bytes) -> list[bytes]:
    """Every worker's bytes, by rank. Sizes travel first and are checked before memory is taken."""
    if not _ready():
        return [payload]
    workers, device = dist.get_world_size(), _device()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(workers)]
    dist.all_gather(sizes, torch.tensor([len(payload)], dtype=torch.int64, device=device))
    longest = max(int(size) for size in sizes)
    if not 0 <= longest <= _MAX_VALUE_BYTES:
        raise ValueError(f"a worker announced {longest} bytes; at most {_MAX_VALUE_BYTES} are accepted")
    padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
    if payload:
        padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    everyone = [torch.zeros_like(padded, device=device) for _ in range(workers)]
    dist.all_gather(everyone, padded.to(device))
    return [bytes(one.cpu().numpy().tobytes()[: int(size)]) for one, size in zip(everyone, sizes, strict=True)]


def wait_for_everybody() -> None:
    """Return once all workers have come here."""
    gather_bytes(b"")


def all_equal(payload: bytes) -> bool:
    """Whether every worker has the same bytes (by SHA-256)."""
    digest = hashlib.sha256(payload).digest()
    return all(other == digest for other in gather_bytes(digest))


def compare_workers(description: Sequence[str]) -> None:
    """Check that all workers run the same thing before they mix anything.

    Args:
        description: lines of text that have to be the same on every worker: parameter names, shapes, dtypes, settings.

    Raises:
        RuntimeError: on every worker, when one differs; the message says which worker and what.

    Example:
        >>> compare_workers(["parameter weight: shape (2, 3), float32"])  # alone: nothing to compare with
    """
    text = "\n".join(description)
    if not _ready() or all_equal(text.encode()):
        return
    everyone = [other.decode(errors="replace").split("\n") for other in gather_bytes(text.encode())]
    problems = []
    for rank, lines in enumerate(everyone):
        theirs = [line for line in lines if line not in set(everyone[0])]
        missing = [line for line in everyone[0] if line not in set(lines)]
        if not theirs and not missing and lines != everyone[0]:
            theirs = ["the same lines in another order"]
        for kind, differences in (("has", theirs), ("lacks", missing)):
            problems += [f"  worker {rank} {kind}: {line}" for line in differences[:_MAX_DIFFERENCES]]
            if len(differences) > _MAX_DIFFERENCES:
                problems.append(f"  worker {rank} {kind} {len(differences) - _MAX_DIFFERENCES} more")
    raise RuntimeError(
        "the workers do not run the same thing; compared with worker 0,\n" + "\n".join(problems) + "\n"
        "Every worker must build the same model, in the same order, with the same strategy settings."
    )


def broadcast_value(value: Any, src: int = 0) -> Any:
    """Send a plain value (None, numbers, strings, tensors, paths, and lists, tuples, dicts of them) to every worker.

    Raises:
        TypeError: on every worker, when the value is of another kind: it would have to be unpickled by the others.
    """
    if not _ready():
        return value
    is_source = dist.get_rank() == src
    payload = b""
    if is_source:
        stored = {"path": str(value)} if isinstance(value, Path) else {"value": value}
        file = io.BytesIO()
        try:
            torch.save(stored, file)
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            payload = file.getvalue()
        except Exception:  # whatever it is that cannot be written or read safely, all workers have to hear of it
            payload = b""
    size = torch.tensor([len(payload)], dtype=torch.int64, device=_device())
    dist.broadcast(size, src)
    length = int(size)
    if length == 0:
        raise TypeError(
            f"broadcast takes plain values (None, bool, int, float, str, tensors, paths and lists, tuples, dicts of"
            f" them), found {type(value).__name__ if is_source else f'something else on worker {src}'}"
        )
    if length > _MAX_VALUE_BYTES:
        raise ValueError(f"broadcast takes at most {_MAX_VALUE_BYTES} bytes, found {length} on worker {src}")
    wire = torch.zeros(length, dtype=torch.uint8)
    if is_source:
        wire = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    wire = wire.to(_device())
    dist.broadcast(wire, src)
    if is_source:
        return value
    stored = torch.load(io.BytesIO(wire.cpu().numpy().tobytes()), weights_only=True)
    return Path(stored["path"]) if "path" in stored else stored["value"]
