"""The least that communication can cost on a given network, worked out from rate and latency alone.

With N workers, R bytes a second each way and L seconds one way:

    all-reduce of B bytes       2 (N - 1) / N * B / R + 2 (N - 1) L       (a ring; no all-reduce sends fewer bytes)
    swap with d neighbours      d * B / R + L                             (all at the same time, both ways at once)

These are floors and not forecasts: gloo's all-reduce was measured to take 4 (N - 1) latencies, because every message
waits for the receiver to say that it is ready, and so does a swap that takes 2 L. Nothing here computes, copies or
waits for a slower worker. What is hidden behind computing costs a step nothing until it is longer than the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

__all__ = ["Network", "all_reduce_seconds", "power_sgd_bytes", "swap_seconds"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Rate and latency between any two workers.

    Args:
        mbit: Mbit/s of each worker, up and down; `None` has no limit.
        delay_ms: one-way delay in milliseconds.
        shaped: whether it is emulated; `False` is the machine's own loopback.
    """

    mbit: float | None = None
    delay_ms: float = 0.0
    shaped: bool = True

    @property
    def bytes_a_second(self) -> float:
        """R, infinite where there is no limit."""
        return inf if self.mbit is None else self.mbit * 1e6 / 8

    @property
    def delay_seconds(self) -> float:
        """L."""
        return self.delay_ms / 1e3


def all_reduce_seconds(network: Network, workers: int, size_bytes: float) -> float:
    """A ring all-reduce: N - 1 steps that scatter and N - 1 that gather, B / N bytes in each.

    Example: 4 workers, 10 MB, 10 Mbit/s and 50 ms: each sends 15 MB, in 6 steps.
        >>> all_reduce_seconds(Network(mbit=10, delay_ms=50), workers=4, size_bytes=10e6)
        12.3
    """
    steps = 2 * (workers - 1)
    return steps / workers * size_bytes / network.bytes_a_second + steps * network.delay_seconds


def swap_seconds(network: Network, neighbors: float, size_bytes: float, messages: int = 1) -> float:
    """A swap with some neighbours at the same time, in one message each or in several that wait for one another.

    Example: 2 neighbours, 10 MB, 10 Mbit/s and 50 ms.
        >>> swap_seconds(Network(mbit=10, delay_ms=50), neighbors=2, size_bytes=10e6)
        16.05
    """
    return neighbors * size_bytes / network.bytes_a_second + messages * network.delay_seconds


def power_sgd_bytes(shapes: Sequence[Shape], rank: int, element_bytes: int = 4) -> tuple[int, int, int]:
    """What PowerSGD all-reduces in a step, one after the other: tensors as they are, all P, all Q.

    A tensor of shape (n, ...) is taken as an (n, m) matrix; it is compressed where that is at least twice smaller
    (torch's `min_compression_rate`).

    Example:
        >>> power_sgd_bytes([(100, 50, 2), (100,)], rank=2)
        (400, 800, 800)

    Source: Vogels et al., "PowerSGD", NeurIPS 2019, arXiv:1905.13727.
    """
    plain = first = second = 0
    for shape in shapes:
        rows, columns = _matrix(shape)
        if len(shape) > 1 and (rows + columns) * rank * 2 < rows * columns:
            rank_here = min(rank, rows, columns)
            first, second = first + rows * rank_here, second + columns * rank_here
        else:
            plain += prod(shape)
    return plain * element_bytes, first * element_bytes, second * element_bytes


def _matrix(shape: Shape) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if shape else (1, 1)
