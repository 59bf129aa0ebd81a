"""A link over NCCL, for one GPU per worker: messages go from device to device and never see the host.

Not run yet on GPUs: written against torch's documented interface and tested with a stand-in for the process group.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_decgan.gossip.edge import EdgeError, Swap

__all__ = ["NcclEdge", "nccl_group"]

_LOOK_SECONDS = 0.0005


def nccl_group(store: dist.Store, rank: int) -> Any:
    """A private NCCL group of two.

    Raises:
        RuntimeError: this torch was built without NCCL.
    """
    if not dist.is_nccl_available():
        raise RuntimeError("edges='nccl' needs a torch with NCCL, which this one is not; edges='gloo' runs everywhere")
    return dist.ProcessGroupNCCL(store, rank, 2, dist.ProcessGroupNCCL.Options())


class NcclEdge:
    """What `GlooEdge` is for gloo.

    NCCL ignores tags, and pairs messages by their order alone: layouts that differ are found by the header, or by the
    deadline. A receive cannot be posted ahead, as it would occupy the device until its message came.

    Args:
        worker: this worker's number.
        neighbor: the number at the other end.
        group: the two-rank group, in which the lower of the two workers has rank 0.
        device: where the messages are.
    """

    def __init__(self, worker: int, neighbor: int, group: Any, device: torch.device) -> None:
        self.worker, self.neighbor = worker, neighbor
        self._group, self._device = group, device
        self._peer = 0 if neighbor < worker else 1

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._group is None

    def expect(self, incoming: Tensor, tag: int) -> None:
        """Nothing: see the class."""

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        """Launch both directions as one NCCL group, so that neither end waits for the other to receive first."""
        if self._group is None:
            raise EdgeError(
                f"the link of worker {self.worker} to neighbour {self.neighbor} is closed", self.worker, self.neighbor
            )
        try:
            self._group._start_coalescing(self._device)
            self._group.recv([incoming], self._peer, tag)
            self._group.send([outgoing], self._peer, tag)
            return _NcclSwap(self, self._group._end_coalescing(self._device))
        except RuntimeError as error:
            raise EdgeError(
                f"worker {self.worker} has lost its link to neighbour {self.neighbor}", self.worker, self.neighbor
            ) from error

    def close(self) -> None:
        """Abort what is in flight and leave the group."""
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
                    f" {edge.neighbor} after {time.monotonic() - self._started:.1f} s",
                    edge.worker,
                    edge.neighbor,
                    late,
                )
            time.sleep(_LOOK_SECONDS)
