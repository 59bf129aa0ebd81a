"""Whom a worker gossips with now, and what is to be done when one of them does not answer.

Losing a neighbour takes nothing but leaving it out: its weight goes back to both ends, and what remains of the mixing
matrix is still doubly stochastic. A neighbourhood has generations: when the graph of the living falls apart, the mender
knits a new one in the background, and the exchange that begins next adopts it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_decgan.gossip.edge import Edge, EdgeError
from lightning_decgan.gossip.events import EventLog
from lightning_decgan.topology import Topology

if TYPE_CHECKING:
    from lightning_decgan.gossip.membership import Membership

__all__ = ["Neighborhood"]

_HELD_UP_SECONDS = 0.5


@dataclass
class _Generation:
    topology: Topology
    edges: dict[int, Edge]


class Neighborhood:
    """This worker's neighbours by round, with their weights, and the edges to them.

    Args:
        worker: this worker's number.
        topology: who is whose neighbour in a round, with what weight.
        edges: the links by neighbour; must cover `topology.links(worker)`.
        membership: who is still there; `None` where nobody can be asked (simulations).
        events: where losses are noted.
        on_loss: `"continue"` without a neighbour that is lost, or `"raise"`.
    """

    def __init__(
        self,
        worker: int,
        topology: Topology,
        edges: Mapping[int, Edge],
        membership: Membership | None = None,
        events: EventLog | None = None,
        on_loss: Literal["continue", "raise"] = "raise",
    ) -> None:
        self.worker, self.membership, self.on_loss = worker, membership, on_loss
        self.events = events or EventLog(worker)
        self.generation = 0
        self.number = 0
        """Gossips begun in this generation; the two ends of an edge count alike."""
        self.mending = False
        """The graph is being knit anew: edges that close meanwhile are not losses."""
        self._lost_while_mending: list[tuple[int, EdgeError, int]] = []
        self._waits_since = 0.0
        self._silent: set[int] = set()  # who did not answer when its swap was late
        self._current = _Generation(topology, dict(edges))
        self._next: _Generation | None = None
        self._lock = threading.Lock()

    @property
    def topology(self) -> Topology:
        """The topology of this generation."""
        return self._current.topology

    @property
    def edges(self) -> Mapping[int, Edge]:
        """The links that are left, by neighbour."""
        return self._current.edges

    @property
    def newest(self) -> tuple[int, int]:
        """The newest generation that this worker knows, adopted or not, and how many gossips it has begun in it."""
        with self._lock:
            return (self.generation, self.number) if self._next is None else (self.generation + 1, 0)

    @property
    def members(self) -> tuple[int, ...]:
        """The workers that are still there."""
        return tuple(range(self.topology.workers)) if self.membership is None else self.membership.members

    def begin(self) -> int:
        """A gossip begins: adopt a new generation if one is ready, and return this gossip's number."""
        with self._lock:
            if self._next is not None:
                old, self._current, self._next = self._current, self._next, None
                self.generation, self.number, self.mending = self.generation + 1, 0, False
                self._lost_while_mending = []
                _close(old)
            number, self.number = self.number, self.number + 1
        if self.membership is not None:
            self.membership.progress = self.number
        return number

    def weights(self, round: int) -> dict[int, float]:
        """W[worker, j] for the neighbours j of a round that are left; the others' weights stay with the worker."""
        return {
            neighbor: weight
            for neighbor, weight in self.topology.weights(self.worker, round).items()
            if neighbor in self._current.edges
        }

    def waits(self, waiting: bool) -> None:
        """Tell those who ask whether this worker is waiting for somebody itself, or was a moment ago.

        Who was held up comes late to its next swap too, where its other neighbours wait.
        """
        if self.membership is None:
            return
        if waiting:
            self._waits_since = time.monotonic()
            self.membership.waiting = True
        elif time.monotonic() - self._waits_since < _HELD_UP_SECONDS:
            self.membership.waiting = False

    def deserves_more_time(self, neighbor: int) -> bool:
        """Whether a neighbour that has missed its deadline is alive and itself waiting for somebody behind it.

        Deadlines that are equal everywhere would otherwise spread: the neighbour of a waiter times out on the waiter.
        """
        if self.membership is None or neighbor not in self.membership.members:
            return False
        answer = self.membership.ask(neighbor)
        if answer is None:
            self._silent.add(neighbor)
        return answer is not None and answer.waiting

    def lose(self, neighbor: int, error: EdgeError, step: int) -> None:
        """Go on without a neighbour's edge and say so; with `on_loss="raise"`, raise the error.

        Raises:
            EdgeError: a loss is fatal in this run.
        """
        edge = self._current.edges.pop(neighbor, None)
        if edge is None:
            return
        edge.close()
        if self.on_loss == "raise":
            raise EdgeError(f"gossip of step {step}: {error}", error.worker, error.neighbor, error.late) from error
        if self.mending:
            # The neighbour has probably adopted the new graph already, in which this edge may be there again.
            self._lost_while_mending.append((neighbor, error, step))
            return
        self._tell_of_loss(neighbor, error, step)

    def give_up_mending(self) -> None:
        """Where no new graph waits to be adopted, what was lost meanwhile is lost."""
        if self._next is not None:
            return
        self.mending = False
        lost, self._lost_while_mending = self._lost_while_mending, []
        for neighbor, error, step in lost:
            self._tell_of_loss(neighbor, error, step)

    def _tell_of_loss(self, neighbor: int, error: EdgeError, step: int) -> None:
        self.events.add("edge_lost", step, neighbor, f"its weight goes back to both ends ({error})")
        if self.membership is None or neighbor not in self.membership.members:
            return
        # A process that has ended is noticed by the door that watches it, at once. Who still answers keeps its other
        # edges; who does not is given up by everybody, and told so should it wake up.
        if neighbor in self._silent or self.membership.ask(neighbor) is None:
            self.membership.report_worker(neighbor, "does not answer", step)
        else:
            self.membership.report_edge(neighbor, "late" if error.late else "link lost", step)

    def isolate(self, neighbor: int, reason: str, step: int, neighbor_is_to_blame: bool | None) -> None:
        """Give up an edge over which nothing but rubbish came; everybody gives up a worker that is surely to blame."""
        if neighbor_is_to_blame is False:
            return  # the neighbour will say so, and this worker ends
        self.events.add("isolated", step, neighbor, reason)
        edge = self._current.edges.pop(neighbor, None)
        if edge is not None:
            edge.close(reason)
        if self.membership is None:
            return
        if neighbor_is_to_blame:
            self.membership.report_worker(neighbor, "published rubbish", step)
        else:
            self.membership.report_edge(neighbor, "rubbish", step)

    def abandon_the_lost(self) -> None:
        """Break the waits for workers that are known to be lost; the exchange then loses their edges by itself."""
        assert self.membership is not None
        for neighbor, reason in self.membership.departures.items():
            edge = self._current.edges.get(neighbor)
            if edge is not None:
                edge.close(f"worker {neighbor} was lost: {reason}")

    def prepare(self, topology: Topology, edges: Mapping[int, Edge]) -> None:
        """Have a new generation ready for the gossip that begins next."""
        with self._lock:
            if self._next is not None:
                _close(self._next)
            self._next = _Generation(topology, dict(edges))

    def close(self) -> None:
        """Close every link."""
        with self._lock:
            _close(self._current)
            if self._next is not None:
                _close(self._next)
                self._next = None


def _close(generation: _Generation) -> None:
    for edge in list(generation.edges.values()):
        edge.close()
    generation.edges.clear()
