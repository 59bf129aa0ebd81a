"""One link to one neighbour: a private process group of two ranks over which raw bytes are swapped.

A timeout or a death on one edge closes that edge alone; in one shared gloo group it would close them all.
torch.distributed's point-to-point calls end here: nobody above sends or receives. An edge never interprets, mixes or
unpickles what it carries.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch.distributed as dist
from torch import Tensor

__all__ = ["Edge", "EdgeError", "GlooEdge", "Swap", "connect_edges"]

# A process may link up several times over one store (a second fit); every worker counts the same, so keys never clash.
_generations = itertools.count()


class EdgeError(RuntimeError):
    """A neighbour could not be reached, or did not answer before the deadline.

    Attributes:
        worker: the rank that noticed.
        neighbor: the rank at the other end.
    """

    def __init__(self, message: str, worker: int, neighbor: int) -> None:
        super().__init__(message, worker, neighbor)
        self.message, self.worker, self.neighbor = message, worker, neighbor

    def __str__(self) -> str:
        return self.message


class Swap(Protocol):
    """A swap in flight."""

    def wait(self, deadline: float) -> None:
        """Block until both directions are done, or raise `EdgeError` once `time.monotonic()` passes `deadline`."""


class Edge(Protocol):
    """What the gossiper needs of a link; simulated links have the same two members."""

    neighbor: int

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Send one `uint8` tensor and receive another of the same size; both must stay untouched until `wait`."""


@dataclass
class _GlooSwap:
    edge: GlooEdge
    works: tuple[dist.Work, dist.Work]
    started: float

    def wait(self, deadline: float) -> None:
        for work in self.works:
            remaining = timedelta(seconds=max(deadline - time.monotonic(), 0.001))
            try:
                work.wait(remaining)
            except RuntimeError as error:
                waited = time.monotonic() - self.started
                late = time.monotonic() >= deadline
                raise EdgeError(
                    f"worker {self.edge.worker} {'got no answer from' if late else 'lost its link to'} neighbour"
                    f" {self.edge.neighbor} after {waited:.1f} s"
                    + (
                        ". If that worker is only slow (first batches under torch.compile, long work on one worker),"
                        " raise DecentralizedGossipStrategy(timeout=...); otherwise look whether it has stopped, or has"
                        " fewer batches than this one"
                        if late
                        else ": it ended, or its own error closed the link; look at its output"
                    )
                    + f" [{str(error).splitlines()[0]}]",
                    self.edge.worker,
                    self.edge.neighbor,
                ) from error


class GlooEdge:
    """A link over a private two-rank gloo group.

    Args:
        worker: this worker's rank.
        neighbor: the rank at the other end.
        group: the two-rank group, in which the lower of the two workers has rank 0.
    """

    def __init__(self, worker: int, neighbor: int, group: dist.ProcessGroup) -> None:
        self.worker, self.neighbor, self._group = worker, neighbor, group
        self._peer = 0 if neighbor < worker else 1

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Post the receive, then the send; both go on in the background."""
        started = time.monotonic()
        try:
            # The receive goes first: gloo sends only after the other end has said that it is ready to receive.
            receive = self._group.recv([incoming], self._peer, tag)
            send = self._group.send([outgoing], self._peer, tag)
        except RuntimeError as error:
            raise EdgeError(
                f"worker {self.worker} has lost its link to neighbour {self.neighbor}", self.worker, self.neighbor
            ) from error
        return _GlooSwap(self, (receive, send), started)


def connect_edges(worker: int, workers: int, neighbors: Iterable[int], timeout: timedelta) -> dict[int, GlooEdge]:
    """Bring up one private group per neighbour; every worker of the default process group must call this.

    Args:
        worker: this worker's rank.
        workers: number of workers.
        neighbors: the ranks to link to; neighbourhood must be mutual.
        timeout: deadline for connecting one edge.

    Returns:
        The edges by neighbour.

    Raises:
        EdgeError: a neighbour did not connect in time; the message names the edge.
    """
    if workers == 1:
        return {}
    store = dist.PrefixStore(f"gossip/{next(_generations)}", dist.distributed_c10d._get_default_store())
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [_device()]  # one listener and one I/O thread for all edges of this worker
    options._timeout = timeout
    options._threads = 1
    edges = {}
    # Edges with the same (i + j) mod N share no worker, so every worker can go through its edges in this one order:
    # all pairs of a colour connect at the same time, and nobody waits in a circle.
    for neighbor in sorted(neighbors, key=lambda j: ((worker + j) % workers, min(worker, j))):
        low, high = min(worker, neighbor), max(worker, neighbor)
        started = time.monotonic()
        try:
            group = dist.ProcessGroupGloo(dist.PrefixStore(f"{low}-{high}", store), int(worker == high), 2, options)
        except (RuntimeError, dist.DistError) as error:
            raise EdgeError(
                f"worker {worker} could not reach neighbour {neighbor} within {time.monotonic() - started:.1f} s (edge"
                f" {low}-{high}, timeout {timeout.total_seconds():g} s): is it running, and may the two machines"
                f" connect to each other? [{str(error).splitlines()[0]}]",
                worker,
                neighbor,
            ) from error
        edges[neighbor] = GlooEdge(worker, neighbor, cast(dist.ProcessGroup, group))  # torch's stubs call it a Backend
    return edges


def _device() -> object:
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return dist.ProcessGroupGloo.create_device(interface=interface)
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        return dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")  # one machine: listen to nobody else
    return dist.ProcessGroupGloo.create_default_device()
