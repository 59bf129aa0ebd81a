"""The t rounds of one gossip: swap a snapshot with the neighbours, judge what came, sum what is to be added.

A round at worker i, with snapshots s and a symmetric doubly stochastic W:

    increments_i += sum_j W[i, j] (s_j - s_i)

Both ends of an edge add opposite amounts, so the mean over workers never moves, whoever is late, lost or left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_decgan.gossip.edge import Edge, EdgeError
from lightning_decgan.gossip.header import Header
from lightning_decgan.gossip.link import Link
from lightning_decgan.gossip.neighborhood import Neighborhood
from lightning_decgan.gossip.outer import OuterNesterov
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

if TYPE_CHECKING:
    from lightning_decgan.gossip.compression import Compression

__all__ = ["Exchange", "GossipReport"]

# A neighbour that is itself waiting gets this many deadlines more.
_EXTENSIONS = 2


@dataclass(frozen=True)
class GossipReport:
    """What one finished gossip cost and saw, at this worker.

    Attributes:
        step: the batch after which its snapshot was taken, counted from 1.
        rounds: gossip rounds.
        swaps: finished swaps (one per neighbour and round, all players in one).
        bytes_sent: bytes sent, and as many were received.
        exchange_seconds: from the snapshot to the last increment, mostly hidden behind compute.
        wait_seconds: what the training thread waited for it.
        late_steps: how many steps later than due its increments were added.
        rejected: swaps whose payload was not added.
        neighbor_distance: mean over the first round's neighbours of |s_j - s_i|, or `None` if nobody was met.
    """

    step: int
    rounds: int
    swaps: int
    bytes_sent: int
    exchange_seconds: float
    wait_seconds: float = 0.0
    late_steps: int = 0
    rejected: int = 0
    neighbor_distance: float | None = None

    @property
    def bytes_received(self) -> int:
        """Bytes received: an edge carries as much one way as the other."""
        return self.bytes_sent


class Exchange:
    """Turns a snapshot of this worker into the sum of its increments.

    Afterwards `increments` is `(W_r ... W_1 - I) S` at this worker, where `S` are all workers' snapshots and
    `W_1 ... W_r` the mixing matrices of the next r rounds, less the edges that were lost or rejected. With `outer`, it
    is what the outer step makes of that.

    Args:
        vector: the layout of what is swapped.
        neighborhood: with whom, with what weights.
        rounds: t, gossip rounds per gossip.
        timeout: deadline of one round, from the moment its messages are posted.
        compression: what a swap carries; `None` is everything, in full precision.
        outer: the outer optimizer, if the gossiped change goes through one.
        seed: of what the compression draws.
    """

    def __init__(
        self,
        vector: FlatVector,
        neighborhood: Neighborhood,
        rounds: int = 1,
        timeout: timedelta = timedelta(seconds=30),
        compression: Compression | None = None,
        outer: OuterNesterov | None = None,
        seed: int = 0,
    ) -> None:
        self.neighborhood, self.rounds, self.timeout = neighborhood, rounds, timeout
        self.tag, self.size_bytes = vector.tag, vector.size_bytes
        self.snapshot = vector.new_buffer()
        self.increments = vector.new_buffer()
        self._vector, self._compression, self._seed = vector, compression, seed
        self._point = vector.new_buffer() if rounds > 1 else None
        self._outer = None if outer is None else outer.begin(vector)
        self._links: dict[int, Link] = {}
        self._buffers: list[FlatBuffer] = []  # those that links share
        self._generation = neighborhood.generation
        self._begun = False  # whether anything has been added to the increments of this exchange

    def begin(self) -> int:
        """The number of the gossip that begins now, in the newest generation of the neighbourhood."""
        number = self.neighborhood.begin()
        if self.neighborhood.generation != self._generation:
            self._links.clear()
            self._generation = self.neighborhood.generation
        return number

    def run(self, step: int, number: int, tamper: Callable[[FlatBuffer], None] | None = None) -> GossipReport:
        """Swap and mix what is in `snapshot`. Runs on a thread of its own.

        Args:
            step: the batch of the snapshot.
            number: what `begin` said.
            tamper: what a fault injector does to the snapshot before it is published.

        Raises:
            EdgeError: a neighbour was lost, and a loss is fatal in this run.
        """
        with self._vector.stream():
            return self._run(step, number, tamper)

    def _run(self, step: int, number: int, tamper: Callable[[FlatBuffer], None] | None) -> GossipReport:
        started = time.monotonic()
        self._vector.wait_until_written()
        self._begun = False
        point, swaps, sent, rejected, distance = self.snapshot, 0, 0, 0, None
        for done in range(self.rounds):
            if done:
                assert self._point is not None
                point = self._point.copy_(self.snapshot).add_(self.increments)
            round = number * self.rounds + done
            links = self._swap(round, point, step, tamper)
            distances = [self._mix(link, weight, round, point, step) for link, weight in links]
            if not self._begun:
                self.increments.zero_()
            if not done and distances:
                finite = [one for one in distances if one is not None]
                distance = sum(finite) / len(finite) if finite else None
            swaps, sent = swaps + len(links), sent + sum(link.round_bytes for link, _ in links)
            rejected += distances.count(None)
        if self._outer is not None:
            self._outer.step(self.snapshot, self.increments)
        self._vector.prefetch(self.increments)
        return GossipReport(
            step=step,
            rounds=self.rounds,
            swaps=swaps,
            bytes_sent=sent,
            exchange_seconds=time.monotonic() - started,
            rejected=rejected,
            neighbor_distance=distance,
        )

    def _link(self, neighbor: int) -> Link:
        edge = self.neighborhood.edges[neighbor]
        link = self._links.get(neighbor)
        if link is None:
            link = self._links[neighbor] = self._make_link(edge)
        return link

    def _make_link(self, edge: Edge) -> Link:
        if self._compression is None:
            return Link(edge, self._vector, None if self._lends else self._vector.new_buffer())
        worker, neighbor = self.neighborhood.worker, edge.neighbor
        ends = (min(worker, neighbor), max(worker, neighbor))
        codec = self._compression.codec(self._vector, ends, worker, self._seed)
        return Link(edge, self._vector, None, codec)

    @property
    def _lends(self) -> bool:
        """Whether links have no memory of their own: where neighbours are drawn anew for ever there are too many."""
        return self._compression is None and self.neighborhood.topology.period is None

    def _lent(self, place: int) -> FlatBuffer:
        while len(self._buffers) <= place:
            self._buffers.append(self._vector.new_buffer())
        return self._buffers[place]

    def _swap(
        self, round: int, point: FlatBuffer, step: int, tamper: Callable[[FlatBuffer], None] | None
    ) -> list[tuple[Link, float]]:
        """Swap with every neighbour of the round, all at once; returns the links over which it succeeded."""
        links = [(self._link(neighbor), weight) for neighbor, weight in self.neighborhood.weights(round).items()]
        if not links:
            return []
        if self._lends:
            for place, (link, _) in enumerate(links):
                link.buffer = self._lent(place)
        norm = point.norm()
        if not math.isfinite(norm):
            self.neighborhood.events.add(
                "not_published", step, None, "this worker's own parameters hold values that are not finite"
            )
        elif tamper is not None:
            tamper(point)
        self.neighborhood.waits(True)
        try:
            for turn in range(links[0][0].turns):
                header = Header(round, turn, norm, void=not math.isfinite(norm))
                header.write(point.message)
                post = partial(Link.post, header=header, snapshot=point)
                links = [(link, weight) for link, weight in links if self._survives(link, post, step)]
                wait = partial(self._wait, deadline=time.monotonic() + self.timeout.total_seconds())
                links = [(link, weight) for link, weight in links if self._survives(link, wait, step)]
        finally:
            self.neighborhood.waits(False)
        return links

    def _survives(self, link: Link, action: Callable[[Link], None], step: int) -> bool:
        """Do something with a link; if that fails, lose the link, and only that."""
        try:
            action(link)
        except EdgeError as error:
            self._links.pop(link.neighbor, None)
            if self._lends:  # what is in flight may still arrive there
                self._buffers = [buffer for buffer in self._buffers if buffer is not link.buffer]
            self.neighborhood.lose(link.neighbor, error, step)
            return False
        return True

    def _wait(self, link: Link, deadline: float) -> None:
        assert link.swap is not None
        for extension in range(_EXTENSIONS + 1):
            try:
                return link.swap.wait(deadline)
            except EdgeError as error:
                last = extension == _EXTENSIONS
                if last or not error.late or not self.neighborhood.deserves_more_time(link.neighbor):
                    raise
                deadline = time.monotonic() + self.timeout.total_seconds()
        return None

    def _mix(self, link: Link, weight: float, round: int, point: FlatBuffer, step: int) -> float | None:
        """Add what a link yields, if it is fit to be added; returns the distance to the neighbour, `None` if not."""
        # The first one is written where the sum is made, which saves two ways through memory.
        target = self._scratch(link) if self._begun else self.increments
        distance, reason = link.increment(round, point, weight, target)
        if reason is None:
            if self._begun:
                self.increments.add_(target)
            self._begun = True
            if not self._lends:
                link.expect_next()
            return distance
        events, judge = self.neighborhood.events, link.judge
        events.add("payload_rejected", step, link.neighbor, reason)
        if judge.in_a_row >= judge.PATIENCE:
            to_blame = link.neighbor_is_to_blame(point, weight, target)
            self._links.pop(link.neighbor, None)
            self.neighborhood.isolate(link.neighbor, f"{judge.in_a_row} in a row: {reason}", step, to_blame)
        return None

    def _scratch(self, link: Link) -> FlatBuffer:
        """Memory for what a link yields: where its message arrived or, as codecs decode in turn, one for all."""
        return self._lent(0) if link.buffer is None else link.buffer

    def state_dict(self) -> dict[str, Any]:
        """What the next exchange needs beside a snapshot: round number, codecs, judges, the outer step."""
        return {
            "number": self.neighborhood.number,
            "members": list(self.neighborhood.members),
            "topology": self.neighborhood.topology.describe(),
            "links": {neighbor: link.state_dict() for neighbor, link in self._links.items()},
            "outer": None if self._outer is None else self._outer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; what links remember only where they are the same links.

        Had somebody been lost, workers have other numbers now, and other neighbours.
        """
        self.neighborhood.number = state["number"]
        here = (list(self.neighborhood.members), self.neighborhood.topology.describe())
        if (state["members"], state["topology"]) == here:
            for neighbor, link_state in state["links"].items():
                self._link(neighbor).load_state_dict(link_state)
        if self._outer is not None and state["outer"] is not None:
            self._outer.load_state_dict(state["outer"])
