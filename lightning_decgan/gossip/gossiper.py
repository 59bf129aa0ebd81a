"""The heart: when a batch has stepped, add what is due, snapshot, let the next exchange begin.

The training thread does no more than one copy out (the snapshot) and one addition in place (the increments) a step;
the rounds themselves are an `Exchange` on a thread of its own. The `Gossiper` decides when: which step a snapshot is
of, and how late its increments may land. It knows nothing of Lightning, of losses, or of optimizers' rules.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lightning_decgan.gossip.edge import EdgeError
from lightning_decgan.gossip.exchange import Exchange, GossipReport
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["GossipTotals", "Gossiper"]

_LOOK_SECONDS = 0.002


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
    late_steps: int = 0
    rejected: int = 0

    def add(self, report: GossipReport) -> None:
        """Count one more finished gossip."""
        self.rounds += report.rounds
        self.swaps += report.swaps
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received
        self.wait_seconds += report.wait_seconds
        self.exchange_seconds += report.exchange_seconds
        self.late_steps += report.late_steps
        self.rejected += report.rejected


@dataclass
class Gossiper:
    """Takes a snapshot when a batch has stepped and adds what its exchange yields.

    `X_k = W^t X_{k-1} - u_k` in both orders. In the exact one (`overlap=False`, the paper's) the exchange of X_{k-1} is
    finished within step k - 1, so the gradient of u_k is taken at `Z_k = W^t X_{k-1} - u_{k-1}`. Overlapped, it runs
    while that gradient is computed, at `Z_k = X_{k-1} - u_{k-1}`, and is finished after the update. Either way the
    increments are added to the live parameters in place, which moves the anchors by the same amount.

    Overlapped, an exchange lands one step after it began, also when gossips are `every` > 1 steps apart. One at most is
    in flight. With `max_delay`, one that is not finished then does not hold the step up: it lands when it is ready, and
    the next begins no earlier. So what is applied is still the product of the mixing
    matrices, one after another, only spread over more steps; exchanges that overtake each other would not be stable.

    Args:
        vector: what is gossiped.
        exchange: how.
        overlap: whether the exchange runs behind the next batch.
        every: batches between gossips.
        max_delay: steps that an exchange may be late before a step waits for it; `None`: no step ever waits.
        tamper: what a fault injector does to the next snapshot before it is published.

    Raises:
        EdgeError: from `step`, when a neighbour is lost and the neighbourhood takes that for fatal.

    Example: one worker gossips with nobody.
        >>> import torch
        >>> from lightning_decgan.gossip.neighborhood import Neighborhood
        >>> from lightning_decgan.topology import Ring
        >>> weight = torch.ones(3)
        >>> vector = FlatVector([("weight", weight)])
        >>> gossiper = Gossiper(vector, Exchange(vector, Neighborhood(0, Ring(1), {})))
        >>> gossiper.step(), weight
        (None, tensor([1., 1., 1.]))
    """

    vector: FlatVector
    exchange: Exchange
    overlap: bool = True
    every: int = 1
    max_delay: int | None = 0
    tamper: Callable[[FlatBuffer], None] | None = None
    totals: GossipTotals = field(default_factory=GossipTotals)
    last_report: GossipReport | None = None
    _due: bool = False
    _pending: Future[GossipReport] | None = None
    _began: int = 0
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="gossip")
    )

    def __post_init__(self) -> None:
        # Where cores are busy with training, an addition that torch shares out among threads waits for them: 28 ms
        # instead of 1 for 11 MB, measured. OpenMP counts threads for each calling thread; what torch hands to threads
        # that are yet to begin is put back.
        threads = torch.get_num_threads()
        self._thread.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(threads)

    def step(self) -> GossipReport | None:
        """The batch has stepped: add what is due, send what is new. Returns the gossip that was finished, if any."""
        self.totals.steps += 1
        if self._pending is not None and self._pending.done():
            self._pending.result()  # an error is raised at the first batch after it, not at the next gossip
        if self.exchange.neighborhood.topology.workers == 1:
            return None
        self._due = self._due or self.totals.steps % self.every == 0
        if self._may_be_late():
            return None
        report = self.finish()
        if self._due:
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
        late = max(0, self.totals.steps - report.step - 1)
        self.last_report = replace(report, wait_seconds=time.monotonic() - started, late_steps=late)
        self.totals.add(self.last_report)
        return self.last_report

    def settle(self) -> GossipReport | None:
        """Wait for the exchange in flight, if there is one, and leave its increments due at the next step."""
        return None if self._pending is None else self._pending.result()

    def keep_company(self, until: Callable[[], bool]) -> None:
        """Go on gossiping, without training, as long as others may wait for this worker's share of an exchange.

        Where steps do not fix how many gossips have begun (late swaps; a graph that was knit anew while somebody was
        ahead), whoever comes first to a moment that concerns everybody would else be waited for, and wait itself.

        Args:
            until: whether everybody has come.
        """
        while not until():
            free = self.max_delay != 0 or self.exchange.neighborhood.newest[0] > 0
            if free and (self._pending is None or self._pending.done()):
                self.finish()
                self._start()
            time.sleep(_LOOK_SECONDS)

    def catch_up(self, newest: tuple[int, int]) -> None:
        """Begin gossips until this worker has begun as many as the others.

        Workers that do not wait for each other may have begun different numbers of gossips. Before a moment at which
        nobody gossips, all come to the same number: nobody then waits for a message that is not sent. With late swaps
        everything is landed as well, so that every swap has been added at both of its ends or at none.

        Args:
            newest: the largest generation of the neighbourhood, and number of gossips in it, of any worker.
        """
        while self.exchange.neighborhood.newest < newest:
            self.finish()
            self._start()
            self.settle()
        if self.max_delay != 0:
            self.finish()
        self.settle()

    def relayout(self, vector: FlatVector, exchange: Exchange) -> None:
        """Go on with another set of tensors; what is in flight is finished with the old one."""
        self.finish()
        self.vector, self.exchange = vector, exchange

    def state_dict(self) -> dict[str, Any]:
        """Counters, the increments in flight, and what the exchange remembers.

        Waits for what is in flight and leaves it due, so that training is unchanged.
        """
        report = self.settle()
        return {
            "totals": vars(self.totals).copy(),
            "tag": self.exchange.tag,
            "report": None if report is None else vars(report).copy(),
            "increments": None if report is None else self.exchange.increments.bytes.clone(),
            "exchange": self.exchange.state_dict(),
            "due": self._due,
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
        self._due = state["due"]
        self.exchange.load_state_dict(state["exchange"])
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
        """Let the exchange in flight end (its deadline bounds that), stop the thread and close the links."""
        # Not cancelled, though nobody here needs it any more: the neighbours' half of it does.
        self._thread.shutdown(wait=True)
        self.exchange.neighborhood.close()

    def _may_be_late(self) -> bool:
        """Whether the exchange in flight is unfinished and this step does not have to wait for it."""
        if self._pending is None or self._pending.done():
            return False
        return self.max_delay is None or self.totals.steps - (self._began + 1) < self.max_delay

    def _start(self) -> None:
        self._due, self._began = False, self.totals.steps
        self.vector.write(self.exchange.snapshot)
        # Counted here and not on the other thread: what has begun must be known to whoever asks from now on.
        number = self.exchange.begin()
        self._pending = self._thread.submit(self.exchange.run, self.totals.steps, number, self.tamper)
