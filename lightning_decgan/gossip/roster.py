"""What one worker knows of who is still there: only ever shrinking, so that the views of all end up the same.

State and its lock, and nothing else: this module neither talks nor notices anything by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["EdgeLoss", "Loss", "Roster"]


@dataclass(frozen=True)
class Loss:
    """A worker that was given up.

    Attributes:
        worker: who.
        reason: why, in a few words.
        step: the batch of whoever noticed.
        seen_by: who noticed.
        seconds: `time.monotonic()` when this worker learnt of it.
    """

    worker: int
    reason: str
    step: int
    seen_by: int
    seconds: float


@dataclass(frozen=True)
class EdgeLoss:
    """A link that was given up while both of its ends live.

    Attributes:
        edge: its ends (low, high).
        reason: why, in a few words.
        step: the batch of the end that noticed.
        forgiven: how often that end had forgiven its links before.
    """

    edge: tuple[int, int]
    reason: str
    step: int
    forgiven: int


class Roster:
    """Members, losses and lost links, as one worker knows them.

    Each attribute is replaced as a whole under `changed`, so it may be read without the lock.

    Args:
        worker: whose view this is.
        workers: N, at the start.
        announce: called after each change, with the lock held; must not block.

    Attributes:
        members: who is there, sorted.
        lost: who was given up, by worker.
        left: who has said goodbye.
        lost_edges: links (low, high) between members that are given up.
        version: grows with each change of the above.
        changed: the lock of all this, notified at each change.

    Example:
        >>> roster = Roster(0, 3, announce=lambda: None)
        >>> roster.note_edge(EdgeLoss((0, 2), "timeout", step=7, forgiven=0))
        True
        >>> roster.lost_edges, roster.members
        (frozenset({(0, 2)}), (0, 1, 2))
        >>> roster.note_loss(Loss(2, "process ended", step=8, seen_by=1, seconds=0.0))
        True
        >>> roster.lost_edges, roster.members, roster.version
        (frozenset(), (0, 1), 2)
    """

    def __init__(self, worker: int, workers: int, announce: Callable[[], None]) -> None:
        self.worker, self.workers = worker, workers
        self.members: tuple[int, ...] = tuple(range(workers))
        self.lost: Mapping[int, Loss] = MappingProxyType({})
        self.left: frozenset[int] = frozenset()
        self.lost_edges: frozenset[tuple[int, int]] = frozenset()
        self.version = 0
        self.changed = threading.Condition()
        self.forgiven = 0
        self._edges: dict[tuple[int, int], EdgeLoss] = {}
        self._announce = announce

    @property
    def own_edge_losses(self) -> list[EdgeLoss]:
        """This worker's own links that are given up."""
        with self.changed:
            return [loss for edge, loss in self._edges.items() if self.worker in edge]

    @property
    def departures(self) -> dict[int, str]:
        """Why those who are no members any more are none, by worker."""
        with self.changed:
            left, lost = self.left, self.lost
        reasons = dict.fromkeys(left, "it ended before the others")
        for worker, loss in lost.items():
            reasons[worker] = f"{loss.reason} (noticed by worker {loss.seen_by} at its step {loss.step})"
        return dict(sorted(reasons.items()))

    def note_loss(self, loss: Loss) -> bool:
        """A worker was given up; whether that is news."""
        with self.changed:
            if loss.worker in self.lost:
                return False
            self.lost = MappingProxyType({**self.lost, loss.worker: loss})
            self._recount()
            return True

    def note_goodbye(self, worker: int) -> bool:
        """A worker has left of its own will; whether that is news."""
        with self.changed:
            if worker in self.left or worker == self.worker:
                return False
            self.left |= {worker}
            self._recount()
            return True

    def note_edge(self, loss: EdgeLoss) -> bool:
        """A link was given up; whether that is news."""
        with self.changed:
            known = self._edges.get(loss.edge)
            if loss.forgiven < self.forgiven or (known is not None and known.forgiven >= loss.forgiven):
                return False
            self._edges[loss.edge] = loss
            self._recount()
            return True

    def forgive_edges(self) -> None:
        """Forget the lost links."""
        with self.changed:
            self.forgiven += 1
            # A message about an older link may still be on its way: it carries an older count and is ignored. One with
            # a newer count comes from a worker that is ahead of this one, and stays.
            self._edges = {edge: loss for edge, loss in self._edges.items() if loss.forgiven >= self.forgiven}
            if self.lost_edges:
                self._recount()

    def _recount(self) -> None:
        self.members = tuple(w for w in range(self.workers) if w not in self.lost and w not in self.left)
        self.lost_edges = frozenset(edge for edge in self._edges if set(edge) <= set(self.members))
        self.version += 1
        self.changed.notify_all()
        self._announce()
