"""The heart: when a batch has stepped, snapshot, swap with the neighbours, add the increments, report.

A round of gossip at worker i, with snapshots s and a symmetric doubly stochastic W:

    x_i += sum_j W[i, j] (s_j - s_i)

Both ends of an edge add opposite amounts, so the mean over workers never moves. One `Exchange` is the t rounds of one
gossip on copies of the parameters; the `Gossiper` decides when a snapshot is taken and when the increments of a
finished exchange are added to the live parameters. It knows nothing of Lightning, of losses, or of optimizers' rules.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from lightning_decgan.gossip.edge import Edge, EdgeError
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector
from lightning_decgan.topology import Topology

__all__ = ["Exchange", "GossipReport", "GossipTotals", "Gossiper"]


@dataclass(frozen=True)
class GossipReport:
    """What one finished gossip cost and saw, at this worker.

    Attributes:
        step: the batch after which its snapshot was taken, counted from 1.
        rounds: gossip rounds.
        swaps: messages swapped (one per neighbour and round, all players in one).
        bytes_sent: bytes sent, and as many were received.
        exchange_seconds: from the snapshot to the last increment, mostly hidden behind compute.
        wait_seconds: what the training thread waited for it.
        neighbor_distance: mean over the first round's neighbours of |s_j - s_i|, or `None` when it was not measured.
    """

    step: int
    rounds: int
    swaps: int
    bytes_sent: int
    exchange_seconds: float
    wait_seconds: float = 0.0
    neighbor_distance: float | None = None

    @property
    def bytes_received(self) -> int:
        """Bytes received: an edge carries as much one way as the other."""
        return self.bytes_sent


@dataclass
class GossipTotals:
    """Sums over all finished gossips of this worker; `steps` counts batches."""

    steps: int = 0
    rounds: int = 0
    swaps: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    wait_seconds: float = 0.0
    exchange_seconds: float = 0.0

    def add(self, report: GossipReport) -> None:
        """Count one more finished gossip."""
        self.rounds += report.rounds
        self.swaps += report.swaps
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received
        self.wait_seconds += report.wait_seconds
        self.exchange_seconds += report.exchange_seconds


class Exchange:
    """The t rounds of one gossip, from a snapshot to the sum of its increments.

    `run` turns a snapshot `s` of all workers `S` into the increments `(W_r ... W_1 - I) S` of this worker, where
    `W_1 ... W_r` are the mixing matrices of the next r rounds of the topology.

    Args:
        vector: the layout of what is swapped.
        topology: who is whose neighbour in a round, with what weight.
        edges: this worker's links by neighbour; must cover `topology.links(worker)`.
        worker: this worker's rank.
        rounds: t, gossip rounds per gossip.
        timeout: deadline of one round, from the moment its messages are posted.
    """

    def __init__(
        self,
        vector: FlatVector,
        topology: Topology,
        edges: Mapping[int, Edge],
        worker: int,
        rounds: int,
        timeout: timedelta,
    ) -> None:
        self.topology, self.edges, self.worker = topology, edges, worker
        self.rounds, self.timeout = rounds, timeout
        self.tag, self.size_bytes = vector.tag, vector.size_bytes
        self.snapshot = vector.new_buffer()
        self.increments = vector.new_buffer()
        self._point = vector.new_buffer() if rounds > 1 else None
        self._incoming: list[FlatBuffer] = []
        self._vector = vector

    def run(self, step: int, first_round: int, measure_distance: bool) -> GossipReport:
        """Swap and mix; afterwards `increments` is what this worker has to add. Runs on a thread of its own."""
        started = time.monotonic()
        self.increments.bytes.zero_()
        point, swaps, distance = self.snapshot, 0, None
        for done in range(self.rounds):
            if done:
                assert self._point is not None
                point = self._point.copy_(self.snapshot).add_(self.increments)
            weights = self.topology.weights(self.worker, first_round + done)
            received = self._swap(point, list(weights), step)
            if measure_distance and not done:
                # A worker that sits this round out is at distance zero from nobody: there is nothing to report.
                distances = [point.distance_to(its) for its in received]
                distance = sum(distances) / len(distances) if distances else None
            for its, weight in zip(received, weights.values(), strict=True):
                self.increments.add_difference_(its, point, weight)
            swaps += len(received)
        return GossipReport(
            step=step,
            rounds=self.rounds,
            swaps=swaps,
            bytes_sent=swaps * self.size_bytes,
            exchange_seconds=time.monotonic() - started,
            neighbor_distance=distance,
        )

    def _swap(self, point: FlatBuffer, neighbors: list[int], step: int) -> list[FlatBuffer]:
        """Send `point` to every neighbour and receive theirs, all at once."""
        while len(self._incoming) < len(neighbors):
            self._incoming.append(self._vector.new_buffer())
        received = self._incoming[: len(neighbors)]
        deadline = time.monotonic() + self.timeout.total_seconds()
        try:
            swaps = [
                self.edges[neighbor].swap(point.bytes, its.bytes, self.tag)
                for neighbor, its in zip(neighbors, received, strict=True)
            ]
            for swap in swaps:
                swap.wait(deadline)
        except EdgeError as error:
            raise EdgeError(f"gossip of step {step}: {error}", error.worker, error.neighbor) from error
        return received


@dataclass
class Gossiper:
    """Takes a snapshot when a batch has stepped and adds what its exchange yields.

    `X_k = W^t X_{k-1} - u_k` in both orders. In the exact one (`overlap=False`, the paper's) the exchange of X_{k-1} is
    finished within step k - 1, so the gradient of u_k is taken at `Z_k = W^t X_{k-1} - u_{k-1}`. Overlapped, it runs
    while that gradient is computed, at `Z_k = X_{k-1} - u_{k-1}`, and is finished after the update. Either way the
    increments are added to the live parameters in place, which moves the anchors by the same amount.

    Args:
        vector: what is gossiped.
        exchange: how.
        overlap: whether the exchange runs behind the next batch.
        every: batches between gossips.

    Raises:
        EdgeError: from `step`, when a neighbour cannot be reached or misses its deadline.

    Example: one worker gossips with nobody.
        >>> import torch
        >>> from lightning_decgan.topology import Ring
        >>> weight = torch.ones(3)
        >>> vector = FlatVector([("weight", weight)])
        >>> gossiper = Gossiper(vector, Exchange(vector, Ring(1), {}, 0, rounds=1, timeout=timedelta(seconds=30)))
        >>> gossiper.step(), weight
        (None, tensor([1., 1., 1.]))
    """

    vector: FlatVector
    exchange: Exchange
    overlap: bool = True
    every: int = 1
    totals: GossipTotals = field(default_factory=GossipTotals)
    measure_distance_every: int = 0
    last_report: GossipReport | None = None
    _gossips: int = 0
    _pending: Future[GossipReport] | None = None
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="gossip")
    )

    def step(self) -> GossipReport | None:
        """The batch has stepped: add what is due, send what is new. Returns the gossip that was finished, if any."""
        self.totals.steps += 1
        if self._pending is not None and self._pending.done():
            self._pending.result()  # an error is raised at the first batch after it, not at the next gossip
        if self.totals.steps % self.every or self.exchange.topology.workers == 1:
            return None
        report = self.finish()
        self._start()
        return report if self.overlap else self.finish()

    def finish(self) -> GossipReport | None:
        """Wait for the exchange in flight, if there is one, and add its increments to the live parameters."""
        if self._pending is None:
            return None
        started = time.monotonic()
        report = self._pending.result()
        self._pending = None
        self.vector.add_(self.exchange.increments)
        self.last_report = replace(report, wait_seconds=time.monotonic() - started)
        self.totals.add(self.last_report)
        return self.last_report

    def settle(self) -> GossipReport | None:
        """Wait for the exchange in flight, if there is one, and leave its increments due at the next step."""
        return None if self._pending is None else self._pending.result()

    def relayout(self, vector: FlatVector, exchange: Exchange) -> None:
        """Go on with another set of tensors; what is in flight is finished with the old one."""
        self.finish()
        self.vector, self.exchange = vector, exchange

    def state_dict(self) -> dict[str, Any]:
        """Counters and the increments in flight; waits for them and leaves them due, so that training is unchanged."""
        report = self.settle()
        return {
            "totals": vars(self.totals).copy(),
            "gossips": self._gossips,
            "tag": self.exchange.tag,
            "report": None if report is None else vars(report).copy(),
            "increments": None if report is None else self.exchange.increments.bytes.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`: the restored increments are added at the next step, as they would have been.

        Raises:
            ValueError: the state belongs to other tensors (names, shapes, dtypes or order differ).
        """
        if state["tag"] != self.exchange.tag:
            raise ValueError(
                "the gossip state in the checkpoint belongs to parameters with other names, shapes, dtypes or order"
                " than this model's"
            )
        with contextlib.suppress(EdgeError):
            self.settle()  # its buffers are in use until it has ended, and its result is no longer wanted
        self.totals = GossipTotals(**state["totals"])
        self._gossips = state["gossips"]
        self._pending = None
        if state["increments"] is not None:
            if state["increments"].shape != self.exchange.increments.bytes.shape:
                raise ValueError(
                    f"the gossip state in the checkpoint holds {state['increments'].numel()} bytes of increments;"
                    f" this model needs {self.exchange.size_bytes}"
                )
            self.exchange.increments.bytes.copy_(state["increments"])
            self._pending = Future()
            self._pending.set_result(GossipReport(**state["report"]))

    def close(self) -> None:
        """Let the exchange in flight end (its deadline bounds that) and stop the thread."""
        # Not cancelled, though nobody here needs it any more: the neighbours' half of it does.
        self._thread.shutdown(wait=True)

    def _start(self) -> None:
        self.vector.write(self.exchange.snapshot)
        measure = self.measure_distance_every > 0 and self.totals.steps % self.measure_distance_every == 0
        first_round = self._gossips * self.exchange.rounds
        self._gossips += 1
        self._pending = self._thread.submit(self.exchange.run, self.totals.steps, first_round, measure)
