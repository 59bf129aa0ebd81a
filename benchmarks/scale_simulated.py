"""A thousand workers in one process: the gossiper itself on edges that are queues, against what the spectrum says.

Every simulated worker has its own `Gossiper`, `Exchange` and thread, with small stacks; only the links are not real.
They train nothing, so what is seen is X_k = W_{k-1} ... W_0 X_0 and how fast it comes to the mean. Nothing here draws.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_decgan.gossip import EdgeError, Exchange, FlatVector, Gossiper, Neighborhood
from lightning_decgan.topology import Topology

__all__ = ["NOTHING", "QueueEdge", "simulate", "slowest_start"]

NOTHING = 1e-12
"""A fraction of the distance at the start at which rounding begins to show."""
RANDOM_COLUMNS = 63
_STACK_BYTES = 256 * 1024


class QueueSwap:
    """A swap over two queues; what was sent lies in the neighbour's already."""

    def __init__(self, edge: QueueEdge, incoming: Tensor) -> None:
        self._edge, self._incoming = edge, incoming

    def wait(self, deadline: float) -> None:
        """Take what the neighbour has sent, in the order in which it was sent."""
        edge = self._edge
        try:
            message = edge.inbox.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            raise EdgeError(
                f"worker {edge.worker} got no answer from neighbour {edge.neighbor}", edge.worker, edge.neighbor, True
            ) from None
        if message is None:
            raise EdgeError(f"worker {edge.neighbor} closed its link to {edge.worker}", edge.worker, edge.neighbor)
        self._incoming.copy_(message)


class QueueEdge:
    """One end of a link inside this process, with the members that the gossiper needs.

    Example:
        >>> here, there = QueueEdge.pair(0, 1)
        >>> received = torch.zeros(2, dtype=torch.uint8)
        >>> sent = there.swap(torch.tensor([1, 2], dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8), tag=0)
        >>> here.swap(torch.zeros(2, dtype=torch.uint8), received, tag=0).wait(deadline=time.monotonic() + 1)
        >>> received.tolist()
        [1, 2]
    """

    def __init__(self, worker: int, neighbor: int, inbox: Any, outbox: Any) -> None:
        self.worker, self.neighbor, self.inbox, self._outbox = worker, neighbor, inbox, outbox

    @classmethod
    def pair(cls, worker: int, neighbor: int) -> tuple[QueueEdge, QueueEdge]:
        """The two ends of a link."""
        one, other = queue.SimpleQueue[Tensor | None](), queue.SimpleQueue[Tensor | None]()
        return cls(worker, neighbor, one, other), cls(neighbor, worker, other, one)

    def expect(self, incoming: Tensor, tag: int) -> None:
        """Nothing to do: a queue takes whatever comes."""

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> QueueSwap:
        """Send a copy: the sender may go on before the neighbour has looked."""
        self._outbox.put(outgoing.clone())
        return QueueSwap(self, incoming)

    def close(self, reason: str = "") -> None:
        """Whoever waits at the other end gets an `EdgeError`."""
        self._outbox.put(None)


def slowest_start(topology: Topology) -> np.ndarray:
    """Where gossip is slowest to reach the mean: shape (N,), norm 1, sum 0.

    For a schedule that repeats, the direction that the product of its matrices, less the mean, shrinks least. For one
    that is drawn anew all directions are alike, and so it is for one that reaches the exact mean: any one then.
    """
    workers = topology.workers
    start = np.random.default_rng(1).standard_normal(workers)
    if topology.period is not None:
        product = np.eye(workers) - 1.0 / workers
        for round in range(topology.period):
            product = topology.mixing_matrix(round) @ product
        _, sizes, directions = np.linalg.svd(product)
        if sizes[0] > 1e-9:
            start = directions[0]
    start = start - start.mean()
    return np.asarray(start / np.linalg.norm(start))


def simulate(topology: Topology, rounds: int, say: Callable[[int], None] = lambda done: None) -> dict[str, list[float]]:
    """Gossip for some rounds from a random start and from the slowest one, both at once.

    Args:
        topology: N workers.
        rounds: k, at least 1.
        say: is told the number of rounds that are done.

    Returns:
        `random` and `slowest`: after 0, 1, ... rounds, the root mean square over workers of the distance to the mean,
        as a fraction of what it was at the start; the last is after k rounds, or when nothing but rounding is left.
        Also `mean_moved`, one number: by how much the mean has moved, relative to the distance at the start.
    """
    start = np.random.default_rng(0).standard_normal((topology.workers, RANDOM_COLUMNS + 1))
    # Of the size of the random columns, and away from zero, so that no payload looks strange to its receiver.
    start[:, -1] = slowest_start(topology) * topology.workers**0.5 + 1.0
    points = torch.from_numpy(start.copy())
    with _small_stacks():
        gossipers = _gossipers(topology, points, rounds)
        history = [_distances(points)]
        try:
            for done in range(1, rounds + 1):
                # Overlapped, without training: everybody begins a round, and at the next step adds what came of it.
                for gossiper in gossipers:
                    gossiper.step()
                if done > 1:
                    history.append(_distances(points))
                    say(done - 1)
                if (history[-1] < NOTHING * history[0]).all():
                    break
            for gossiper in gossipers:
                gossiper.finish()
            history.append(_distances(points))
        finally:
            for gossiper in gossipers:
                gossiper.close()
    moved = np.abs(points.numpy().mean(axis=0) - start.mean(axis=0)).max() / history[0].min()
    relative = np.array(history) / history[0]
    return {"random": relative[:, 0].tolist(), "slowest": relative[:, 1].tolist(), "mean_moved": [float(moved)]}


def _gossipers(topology: Topology, points: Tensor, rounds: int) -> list[Gossiper]:
    """One for each worker, linked to whomever it meets in these rounds: a schedule may in the end meet everybody."""
    edges: list[dict[int, QueueEdge]] = [{} for _ in range(topology.workers)]
    for round in range(min(rounds, topology.period or rounds)):
        for worker in range(topology.workers):
            for neighbor in topology.neighbors(worker, round):
                if neighbor not in edges[worker]:
                    edges[worker][neighbor], edges[neighbor][worker] = QueueEdge.pair(worker, neighbor)
    gossipers = []
    for worker in range(topology.workers):
        vector = FlatVector([("point", points[worker])])
        gossipers.append(Gossiper(vector, Exchange(vector, Neighborhood(worker, topology, edges[worker]))))
    return gossipers


def _distances(points: Tensor) -> np.ndarray:
    """Root mean square distance to the mean: of the random columns together, and of the last one."""
    squares = (points - points.mean(dim=0)).square().mean(dim=0)
    return np.array([float(squares[:-1].sum().sqrt()), float(squares[-1].sqrt())])


@contextmanager
def _small_stacks() -> Iterator[None]:
    """Threads that are started inside get small stacks: a thousand of the usual size would take gigabytes."""
    usual = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(usual)
