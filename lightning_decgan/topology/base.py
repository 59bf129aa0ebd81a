"""What a topology is: for every round of gossip, whom a worker meets and with which weight.

`Topology` is the one class that the rest of the package knows. A subclass says `neighbors`; Metropolis weights, mixing
matrices, rates and the line for the start-up checksum follow from it. Topologies are pure functions of their arguments:
every worker asks its own copy and all agree without a word. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from typing import Self

import networkx as nx
import numpy as np

from lightning_decgan.checks import check_integer
from lightning_decgan.topology import mixing
from lightning_decgan.topology.checks import Matrix

RANDOM_DRAWS = 256
"""Rounds over which a schedule that is drawn anew is averaged where no exact rate is known."""

LARGEST_MATRIX_WORKERS = 8192
"""The largest N for which an N x N matrix (512 MiB) is made; `neighbors` and `weights` know no such limit."""


class Topology(ABC):
    """Who talks to whom in a round of gossip, and how much of each other they take.

    ``x_i <- x_i + sum_j W[i, j] (x_j - x_i)`` over the neighbours j of worker i in that round. Rounds are counted from
    the start of the training: step k with t rounds a step makes the rounds ``k t ... k t + t - 1``.

    To write your own, subclass, set `name` (and `period`, if it is not 1) and define `neighbors`: symmetric (j is a
    neighbour of i exactly when i is one of j), sorted, without the worker itself, a pure function of its arguments.
    Override `degree` where it is known without listing the neighbours. Objects are picklable and copyable.

    Args:
        workers: N, at least 1.

    Attributes:
        workers: N.
        name: what the topology is called in configurations and tables.
        period: the rounds after which the schedule repeats; 1 never changes, None is drawn anew for ever.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers < 1.

    Example:
        >>> class Star(Topology):
        ...     name = "star"
        ...     def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        ...         return tuple(range(1, self.workers)) if worker == 0 else (0,)
        >>> star = Star(4)
        >>> star.weights(0)
        {1: 0.25, 2: 0.25, 3: 0.25}
        >>> star.rounds_for(1e-2)
        17
    """

    name: str = "custom"
    period: int | None = 1

    def __init__(self, workers: int) -> None:
        self.workers = check_integer("workers", workers, 1)

    @classmethod
    def from_settings(cls, workers: int, *, seed: int = 0, rounds: int = 1) -> Self:
        """Make the topology from what a strategy knows; one that draws overrides this and takes what it needs.

        Args:
            workers: N.
            seed: of random topologies.
            rounds: gossip rounds a step.
        """
        del seed, rounds
        return cls(workers)

    def rebuilt_for(self, workers: int) -> Topology:
        """The same rule, with the same seed, for another number of workers: what survivors of a loss go on with.

        For its own number that is the object itself; else `from_settings` with the `seed` that it has, or 0. A class
        of your own whose constructor takes more than the number of workers overrides this, or `from_settings`, and says
        what becomes of its arguments.

        Args:
            workers: how many there are now, at least 1.

        Raises:
            TypeError: workers is not an integer.
            ValueError: the rule does not exist for so many workers, or cannot be made from their number alone.

        Example:
            >>> from lightning_decgan.topology import Torus
            >>> Torus(12).rebuilt_for(10).shape
            (2, 5)
        """
        workers = check_integer("workers", workers, 1)
        if workers == self.workers:
            return self
        try:
            return type(self).from_settings(workers, seed=getattr(self, "seed", 0))
        except TypeError as error:
            raise ValueError(
                f"topology {self.name} must say what it is for {workers} workers: define rebuilt_for(workers), found "
                f"that {type(self).__name__} cannot be made from their number ({error})"
            ) from error

    @abstractmethod
    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round: sorted, without itself; costs O(degree).

        Args:
            worker: 0..N-1.
            round: counted from 0.

        Raises:
            TypeError: worker or round is not an integer.
            ValueError: worker or round is out of range.
        """

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return len(self.neighbors(worker, round))

    def weights(self, worker: int, round: int = 0) -> dict[int, float]:
        """W[worker, j] for each neighbour j of the round, Metropolis: ``1 / (1 + max(degree_i, degree_j))``.

        What the worker keeps of itself, W[worker, worker], is one minus their sum. Both ends of an edge get the same
        float, bit for bit.

        Args:
            worker: 0..N-1.
            round: counted from 0.

        Raises:
            TypeError: worker or round is not an integer.
            ValueError: worker or round is out of range.
        """
        own = self.degree(worker, round)
        return {other: 1.0 / (1 + max(own, self.degree(other, round))) for other in self.neighbors(worker, round)}

    def links(self, worker: int) -> tuple[int, ...]:
        """Everyone a worker may ever meet, in any round: the connections it needs. Sorted, without itself."""
        worker, _ = self.checked(worker, 0)
        if self.period is None:
            return tuple(other for other in range(self.workers) if other != worker)
        return tuple(sorted({other for round in range(self.period) for other in self.neighbors(worker, round)}))

    def graph(self, round: int = 0) -> nx.Graph[int]:
        """The graph of a round: nodes 0..N-1, and W[i, j] as the attribute ``weight`` of each edge."""
        _, round = self.checked(0, round)
        graph: nx.Graph[int] = nx.Graph(name=self.name)
        graph.add_nodes_from(range(self.workers))
        for worker in range(self.workers):
            for other, weight in self.weights(worker, round).items():
                graph.add_edge(worker, other, weight=weight)
        return graph

    def mixing_matrix(self, round: int = 0) -> Matrix:
        """W of a round: float64, shape (N, N), symmetric, doubly stochastic.

        Raises:
            ValueError: more than 8192 workers, for whom the matrix would not fit in memory.
        """
        _, round = self.checked(0, round)
        if self.workers > LARGEST_MATRIX_WORKERS:
            raise ValueError(
                f"workers must be at most {LARGEST_MATRIX_WORKERS} for a mixing matrix, found {self.workers}, whose "
                f"matrix takes {self.workers**2 * 8 / 2**30:.1f} GiB; weights(worker, round) gives its rows"
            )
        matrix: Matrix = np.zeros((self.workers, self.workers))
        for worker in range(self.workers):
            weights = self.weights(worker, round)
            matrix[worker, list(weights)] = list(weights.values())
            matrix[worker, worker] = 1.0 - sum(weights.values())
        return matrix

    def consensus_rate(self) -> float:
        """What a round leaves of the disagreement, in [0, 1): 0 is the exact mean, close to 1 is slow.

        A schedule that repeats: ``||W_{p-1} ... W_0 - J||_2 ** (1 / p)``. One drawn anew: the root mean square,
        ``sqrt(lambda_max(E[W^2] - J))``, exact for this package's random topologies, else over 256 rounds.
        """
        if self.workers == 1:
            return 0.0
        if self.period is None:
            return mixing.random_consensus_rate(self.mixing_matrix(round) for round in range(RANDOM_DRAWS))
        return mixing.consensus_rate([self.mixing_matrix(round) for round in range(self.period)])

    def spectral_gap(self) -> float:
        """``1 - max(|lambda_2|, |lambda_N|)`` of W; for a schedule, one minus its `consensus_rate`."""
        return 1.0 - self.consensus_rate()

    def rounds_for(self, tolerance: float) -> int:
        """The fewest rounds, from round 0, after which the deviation from the mean is at most this fraction of itself.

        In the 2-norm and exact for a schedule that repeats, whatever the workers start from; from the rate, so in the
        mean square, for one drawn anew. 0 for a single worker.

        Args:
            tolerance: in [1e-12, 1).

        Raises:
            ValueError: tolerance is out of range.
        """
        tolerance = mixing.check_tolerance(tolerance)
        if self.workers == 1:
            return 0
        if self.period is None:
            return mixing.rounds_from_rate(self.consensus_rate(), tolerance)
        return mixing.rounds_for([self.mixing_matrix(round) for round in range(self.period)], tolerance)

    def describe(self) -> str:
        """One canonical line, equal on two workers only if their schedules are: the start-up checksum holds it.

        Here the SHA-256 of every worker's weights over a period (64 rounds where the schedule is drawn anew); classes
        that their arguments determine name those instead.
        """
        digest = hashlib.sha256()
        for round in range(self.period or 64):
            for worker in range(self.workers):
                for other, weight in sorted(self.weights(worker, round).items()):
                    digest.update(struct.pack("<qqqd", round, worker, other, weight))
        return f"{self.name}(workers={self.workers}, period={self.period}, sha256={digest.hexdigest()})"

    def checked(self, worker: int, round: int) -> tuple[int, int]:
        """Return worker and round as ints, or raise an error that says which values are valid."""
        return check_integer("worker", worker, 0, self.workers - 1), check_integer("round", round, 0)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.workers} workers, period {self.period}>"
