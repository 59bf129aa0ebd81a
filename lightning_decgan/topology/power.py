"""Several rounds as one: the neighbourhood and the weights of W^t.

At high latency the number of messages in turn costs more than their bytes: t rounds with the neighbours of W wait t
times, one round with the neighbours of W^t waits once, and both multiply the workers' vectors by the same matrix. The
price is a wider neighbourhood. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

import math
from typing import Any

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.base import Topology

NOTHING = 1e-15
"""Entries of W^t up to this size are not worth a message, nor told from the rounding of an entry that is 0.

Less than ten units in the last place of 1 in float64: leaving them out changes what a worker holds less than the
addition itself rounds it. What a worker keeps of itself is what its edges leave, so the rows still sum to 1.
"""


class PowerTopology(Topology):
    """t rounds of a topology that never changes, made as one: row i of W^t says whom worker i meets, and how much.

    Both ends of an edge get the same float, bit for bit: of W^t[i, j] and W^t[j, i], which rounding may tell apart,
    both take the one in the row of the lower number. A row costs t sparse steps from a unit vector, not an N x N
    matrix, and is kept; so N may be in the thousands where W^t is sparse.

    Args:
        topology: of period 1.
        rounds: t, at least 1.

    Raises:
        TypeError: topology is not a topology, or rounds not an integer.
        ValueError: a topology that changes from round to round, or rounds < 1.

    Example:
        >>> from lightning_decgan.topology import Ring
        >>> twice = PowerTopology(Ring(8), rounds=2)
        >>> twice.neighbors(0)
        (1, 2, 6, 7)
        >>> {other: round(9 * weight) for other, weight in twice.weights(0).items()}    # ninths
        {1: 2, 2: 1, 6: 1, 7: 2}
    """

    def __init__(self, topology: Topology, rounds: int) -> None:
        if not isinstance(topology, Topology):
            raise TypeError(f"topology must be a Topology, found {type(topology).__name__}")
        super().__init__(topology.workers)
        self.rounds = check_integer("rounds", rounds, 1)
        if topology.period != 1:
            raise ValueError(
                f"topology must be the same in every round for its power, found {topology.name}, whose period is "
                f"{topology.period}: its rounds have different matrices, and their product is not symmetric"
            )
        self.topology = topology
        self.name = f"{topology.name}^{self.rounds}"
        self._single: dict[int, dict[int, float]] = {}  # rows of W, diagonal included
        self._above: dict[int, dict[int, float]] = {}  # rows of W^t, right of the diagonal
        self._weights: dict[int, dict[int, float]] = {}  # rows of W^t, without the diagonal

    def rebuilt_for(self, workers: int) -> Topology:
        """The same power of the same rule for another number of workers."""
        return PowerTopology(self.topology.rebuilt_for(workers), self.rounds)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets, sorted."""
        return tuple(self.weights(worker, round))

    def weights(self, worker: int, round: int = 0) -> dict[int, float]:
        """W^t[worker, j] for each neighbour j."""
        worker, _ = self.checked(worker, round)
        if worker not in self._weights:
            before = sorted(other for other in self._reach(worker) if other < worker)
            entries = {other: self._row_above(other).get(worker, 0.0) for other in before} | self._row_above(worker)
            self._weights[worker] = {other: weight for other, weight in entries.items() if weight > NOTHING}
        return dict(self._weights[worker])

    def consensus_rate(self) -> float:
        """What one exchange leaves of the disagreement: what t rounds leave of it."""
        return self.topology.consensus_rate() ** self.rounds

    def describe(self) -> str:
        """One canonical line: the power, and the topology's own."""
        return f"power(rounds={self.rounds}, of={self.topology.describe()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.topology, self.rounds)  # the rows are made again where they are needed

    def _reach(self, worker: int) -> set[int]:
        """Who is at most t steps away: everybody with an entry in the row of W^t, and perhaps more."""
        reached, latest = {worker}, {worker}
        for _ in range(self.rounds):
            latest = {other for one in latest for other in self._single_row(one)} - reached
            reached |= latest
        return reached

    def _row_above(self, worker: int) -> dict[int, float]:
        if worker not in self._above:
            row = {worker: 1.0}
            for _ in range(self.rounds):
                following: dict[int, float] = {}
                for one, share in row.items():
                    for other, weight in self._single_row(one).items():
                        following[other] = following.get(other, 0.0) + share * weight
                row = following
            self._above[worker] = {other: row[other] for other in sorted(row) if other > worker}
        return self._above[worker]

    def _single_row(self, worker: int) -> dict[int, float]:
        if worker not in self._single:
            weights = self.topology.weights(worker)
            # fsum: `sum` of floats rounds differently from Python 3.12 on, and two workers may have different Pythons
            self._single[worker] = weights | {worker: max(0.0, 1.0 - math.fsum(weights.values()))}
        return self._single[worker]


def merges_well(topology: Topology, rounds: int) -> bool:
    """Whether t rounds should be made as one: it takes no more messages of anybody, and t - 1 waits less.

    Always so on a ring, where t steps to either side are 2 t neighbours, and where everybody meets everybody anyway.

    Args:
        topology: of any kind; one that changes from round to round has no power.
        rounds: t, at least 1.

    Returns:
        True if t > 1, the topology is the same in every round, and no worker has more neighbours in W^t than t times
        those in W.

    Raises:
        TypeError: rounds is not an integer.
        ValueError: rounds < 1.

    Example:
        >>> from lightning_decgan.topology import Hypercube, OnePeerExponential, Ring
        >>> merges_well(Ring(16), 3), merges_well(Hypercube(16), 2), merges_well(OnePeerExponential(16), 2)
        (True, False, False)
    """
    rounds = check_integer("rounds", rounds, 1)
    if rounds == 1 or topology.period != 1:
        return False
    power = PowerTopology(topology, rounds)
    for worker in range(topology.workers):
        messages = rounds * topology.degree(worker)
        if messages < topology.workers - 1 and power.degree(worker) > messages:
            return False
    return True
