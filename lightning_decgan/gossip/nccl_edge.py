"""A link over NCCL, for one GPU per worker: messages go from device to device and never see the host.

Not run yet on GPUs: written against torch's documented interface and tested with a stand-in for the process group.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lightning_decgan.gossip.edge import EdgeError, Swap, lost_link

__all__ = ["NcclEdge", "nccl_group"]

_LOOK_SECONDS = 0.0005


def nccl_group(store: dist.Store, rank: int, timeout: timedelta) -> Any:
    """A private NCCL group of two.

    NCCL would end the whole process when an operation of the group fails or takes longer than the timeout; here that
    is left to `NcclEdge`, which loses one edge.

    Args:
        store: where the two meet.
        rank: 0 or 1.
        timeout: of connecting, which happens with the first swap.

    Raises:
        RuntimeError: this torch was built without NCCL.
    """
    if not dist.is_nccl_available():
        raise RuntimeError("edges='nccl' needs a torch with NCCL, which this one is not; edges='gloo' runs everywhere")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _environment("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"):  # a group reads it when it is made
        return dist.ProcessGroupNCCL(store, rank, 2, options)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class NcclEdge:
    """What `GlooEdge` is for gloo.

    NCCL ignores tags, and pairs messages by their order alone: layouts that differ are found by the header, or by the
    deadline. A receive cannot be posted ahead, as it would occupy the device until its message came.

    Args:
        worker: this worker's number.
        neighbor: the number at the other end.
        group: the two-rank group, in which the lower of the two workers has rank 0.
    """

    def __init__(self, worker: int, neighbor: int, group: Any) -> None:
        self.worker, self.neighbor = worker, neighbor
        self._group = group
        self._peer = 0 if neighbor < worker else 1
        self._closed_because = ""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._group is None

    @property
    def closed_because(self) -> str:
        """What `close` was told; empty before."""
        return self._closed_because

    def expect(self, incoming: Tensor, tag: int) -> None:
        """Nothing: see the class."""

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Launch both directions as one NCCL group, so that neither end waits for the other to receive first."""
        group = self._group  # another thread may close the edge meanwhile
        if group is None:
            raise lost_link(self.worker, self.neighbor, f": {self._closed_because}")
        try:
            group._start_coalescing()
            group.recv([incoming], self._peer, tag)
            group.send([outgoing], self._peer, tag)
            return _NcclSwap(self, group._end_coalescing())
        except RuntimeError as error:
            raise lost_link(self.worker, self.neighbor) from error

    def close(self, reason: str = "the link was given up") -> None:
        """Abort what is in flight and leave the group."""
        if self._group is not None:
            self._closed_because = reason
        group, self._group = self._group, None
        if group is not None:
            group.abort()


class _NcclSwap:
    def __init__(self, edge: NcclEdge, work: Any) -> None:
        self._edge, self._work = edge, work
        self._started = time.monotonic()

    def wait(self, deadline: float) -> None:
        edge = self._edge
        # NCCL's own wait only makes the stream wait; the host has to look.
        while not self._work.is_completed():
            late = time.monotonic() >= deadline
            if late or edge.closed:
                raise EdgeError(
                    f"worker {edge.worker} {'got no answer from' if late else 'lost its link to'} neighbour"
                    f" {edge.neighbor} after {time.monotonic() - self._started:.1f} s"
                    + ("" if late else f": {edge.closed_because}"),
                    edge.worker,
                    edge.neighbor,
                    late,
                )
            time.sleep(_LOOK_SECONDS)
        error = self._work.exception()  # what has failed counts as completed
        if error is not None:
            raise lost_link(edge.worker, edge.neighbor, f" [{error}]")
