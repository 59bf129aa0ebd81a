"""One link to one neighbour: a private process group of two ranks over which raw bytes are swapped.

A timeout or a death on one edge closes that edge alone; in one shared gloo group it would close them all.
torch.distributed's point-to-point calls end here: nobody above sends or receives. An edge never interprets, mixes or
unpickles what it carries.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from queue import SimpleQueue
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Edge", "EdgeError", "GlooEdge", "Swap", "connect_edges", "lost_link"]

# A process may link up several times over one store (a second fit); every worker counts the same, so keys never clash.
_generations = itertools.count()


# gloo never gives a wait up by itself: whether a neighbour is late is for the gossiper to say, who can ask.
_NEVER = timedelta(days=1)
_JOIN_SECONDS = 0.2


class EdgeError(RuntimeError):
    """A neighbour could not be reached, or did not answer before the deadline.

    Attributes:
        worker: the rank that noticed.
        neighbor: the rank at the other end.
        late: whether it was the deadline that passed; else the link itself has failed.
    """

    def __init__(self, message: str, worker: int, neighbor: int, late: bool = False) -> None:
        super().__init__(message, worker, neighbor, late)
        self.message, self.worker, self.neighbor, self.late = message, worker, neighbor, late

    def __str__(self) -> str:
        return self.message


def lost_link(worker: int, neighbor: int, why: str = "") -> EdgeError:
    """The error of a link that has failed or was closed, to be raised."""
    return EdgeError(f"worker {worker} lost its link to neighbour {neighbor}{why}", worker, neighbor)


class Swap(Protocol):
    """A swap in flight."""

    def wait(self, deadline: float) -> None:
        """Block until both directions are done, or raise `EdgeError` once `time.monotonic()` passes `deadline`.

        After an error for which `late` is true, the swap is still in flight and may be waited for again.
        """


class Edge(Protocol):
    """What the gossiper needs of a link; simulated links have the same members."""

    neighbor: int

    def expect(self, incoming: Tensor, tag: int) -> None:
        """The next swap's message may arrive in this tensor from now on; a hint, which may do nothing."""

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Send one `uint8` tensor and receive another of the same size; both must stay untouched until `wait`."""

    def close(self, reason: str = "the link was given up") -> None:
        """End the link; whoever waits for a swap, here or at the other end, gets an `EdgeError` soon.

        Whoever swaps or waits here afterwards is told the reason. May be called from any thread, and again.
        """


class _GlooSwap:
    """Two directions in flight, waited for by the edge's own thread: gloo's waits cannot be broken from outside."""

    def __init__(self, edge: GlooEdge, works: tuple[dist.Work, dist.Work]) -> None:
        self._edge, self._works = edge, works
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._error: str | None = None

    def wait_in_thread(self) -> None:
        try:
            for work in self._works:
                work.wait(_NEVER)
        except RuntimeError as error:
            self._error = str(error).splitlines()[0].split(". This is typically")[0]
        self._works = ()  # type: ignore[assignment]  # they hold the tensors
        self._ended.set()

    def give_up(self, reason: str) -> None:
        if not self._ended.is_set():
            self._error = reason
            self._ended.set()

    def wait(self, deadline: float) -> None:
        late = not self._ended.wait(max(deadline - time.monotonic(), 0.001))
        if not late and self._error is None:
            return
        edge, waited = self._edge, time.monotonic() - self._started
        raise EdgeError(
            f"worker {edge.worker} {'got no answer from' if late else 'lost its link to'} neighbour"
            f" {edge.neighbor} after {waited:.1f} s"
            + (
                ". If that worker is only slow (first batches under torch.compile, long work on one worker), raise"
                " DecentralizedGossipStrategy(timeout=...); otherwise look whether it has stopped, or has fewer batches"
                " than this one"
                if late
                else f": it ended, or its own error closed the link; look at its output [{self._error}]"
            ),
            edge.worker,
            edge.neighbor,
            late,
        )


class GlooEdge:
    """A link over a private two-rank gloo group.

    Args:
        worker: this worker's rank.
        neighbor: the rank at the other end.
        group: the two-rank group, in which the lower of the two workers has rank 0.
    """

    def __init__(self, worker: int, neighbor: int, group: dist.ProcessGroup) -> None:
        self.worker, self.neighbor = worker, neighbor
        self._group: dist.ProcessGroup | None = group
        self._peer = 0 if neighbor < worker else 1
        self._swaps: SimpleQueue[_GlooSwap | None] = SimpleQueue()
        self._in_flight: _GlooSwap | None = None
        self._expected: tuple[Tensor, int, dist.Work] | None = None
        self._closed_because = ""
        # Between a swap and a close from another thread: a swap posted after the close would be waited for in vain.
        self._lock = threading.Lock()
        # A daemon: a frozen neighbour may keep it in gloo's wait for ever, which must not keep the process from ending.
        self._waiter = threading.Thread(
            target=_wait_for, args=(self._swaps,), name=f"edge {worker}-{neighbor}", daemon=True
        )
        self._waiter.start()

    def expect(self, incoming: Tensor, tag: int) -> None:
        """Post the next swap's receive ahead.

        gloo sends only when the other end has said that it is ready to receive; told ahead, the neighbour's next
        message travels at once, and a swap takes one latency instead of two.
        """
        with self._lock:
            if self._group is not None and self._expected is None:
                # A link that has just failed says so at the next swap.
                with contextlib.suppress(RuntimeError):
                    self._expected = (incoming, tag, self._group.recv([incoming], self._peer, tag))

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Post the receive, unless it was posted ahead, then the send; both go on in the background."""
        with self._lock:
            group = self._group
            if group is None:
                raise lost_link(self.worker, self.neighbor, f": {self._closed_because}")
            try:
                expected, self._expected = self._expected, None
                if expected is not None and expected[0].data_ptr() == incoming.data_ptr() and expected[1] == tag:
                    receive = expected[2]
                else:
                    receive = group.recv([incoming], self._peer, tag)
                send = group.send([outgoing], self._peer, tag)
            except RuntimeError as error:
                raise lost_link(self.worker, self.neighbor) from error
            swap = _GlooSwap(self, (receive, send))
            self._in_flight = swap
            self._swaps.put(swap)
        return swap

    def close(self, reason: str = "the link was given up") -> None:
        """Give up what is in flight and leave the group; its sockets close when the last wait has ended."""
        with self._lock:
            if self._group is not None:
                self._closed_because = reason
            self._group, self._expected = None, None
            if self._in_flight is not None:
                self._in_flight.give_up(reason)
            self._swaps.put(None)
        # Still in gloo's code when the interpreter ends, the thread would take the process down with it (SIGABRT).
        self._waiter.join(_JOIN_SECONDS)


def _wait_for(swaps: SimpleQueue[_GlooSwap | None]) -> None:
    # Holds the queue and no edge, so that an edge that is dropped frees its sockets.
    while (swap := swaps.get()) is not None:
        swap.wait_in_thread()
        del swap


def connect_edges(
    worker: int,
    workers: int,
    neighbors: Iterable[int],
    timeout: timedelta,
    store: dist.Store | None = None,
    nccl_device: torch.device | None = None,
) -> dict[int, Edge]:
    """Bring up one private group per neighbour; everyone who is a neighbour of someone must call this.

    Args:
        worker: this worker's number.
        workers: number of workers, numbers of absent ones included.
        neighbors: the numbers to link to; neighbourhood must be mutual.
        timeout: deadline for connecting one edge.
        store: where the ends meet; the default process group's store, under a new prefix with every call.
        nccl_device: the GPU whose messages travel by NCCL; `None` is gloo.

    Returns:
        The edges by neighbour.

    Raises:
        EdgeError: a neighbour did not connect in time; the message names the edge.
    """
    if workers == 1:
        return {}
    if store is None:
        store = dist.PrefixStore(f"gossip/{next(_generations)}", dist.distributed_c10d._get_default_store())
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [_device()]  # one listener and one I/O thread for all edges of this worker
    options._timeout = timeout
    options._threads = 1
    edges: dict[int, Edge] = {}
    # Edges with the same (i + j) mod N share no worker, so every worker can go through its edges in this one order:
    # all pairs of a colour connect at the same time, and nobody waits in a circle.
    for neighbor in sorted(neighbors, key=lambda j: ((worker + j) % workers, min(worker, j))):
        low, high = min(worker, neighbor), max(worker, neighbor)
        started = time.monotonic()
        pair, rank = dist.PrefixStore(f"{low}-{high}", store), int(worker == high)
        try:
            if nccl_device is not None:
                from lightning_decgan.gossip.nccl_edge import NcclEdge, nccl_group

                edges[neighbor] = NcclEdge(worker, neighbor, nccl_group(pair, rank, timeout))
                continue
            group = dist.ProcessGroupGloo(pair, rank, 2, options)
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
