"""Topologies that the user brings: a networkx graph, or a mixing matrix with its own weights.

Both are checked and copied when they are made; changing the graph or the array afterwards changes nothing here. What
other attributes a graph carries is not looked at, and nothing here talks or imports torch.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.base import Topology
from lightning_decgan.topology.checks import check_graph, check_mixing_matrix


class GraphTopology(Topology):
    """The edges of a networkx graph, the same in every round, with Metropolis weights.

    Attributes of edges are not used: for weights of your own, make a `MatrixTopology`.

    Args:
        graph: undirected, connected, simple, with the nodes 0..N-1.

    Raises:
        TypeError: not a networkx graph.
        ValueError: directed, a multigraph, empty, other nodes than 0..N-1, self loops, or not connected.

    Example:
        >>> topology = GraphTopology(nx.path_graph(3))
        >>> topology.neighbors(1), topology.weights(0)
        ((0, 2), {1: 0.3333333333333333})
    """

    name = "graph"

    def __init__(self, graph: nx.Graph[int]) -> None:
        check_graph(graph)
        super().__init__(graph.number_of_nodes())
        self._neighbors = tuple(tuple(sorted(int(other) for other in graph[worker])) for worker in range(self.workers))

    def rebuilt_for(self, workers: int) -> Topology:
        """Itself for its own number of workers; a graph that was given has no rule for any other.

        Raises:
            TypeError: workers is not an integer.
            ValueError: another number; `reknit` keeps what is left of the graph.
        """
        return _itself(self, workers)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return self._neighbors[worker]


class MatrixTopology(Topology):
    """A mixing matrix, the same in every round: its positive entries are the edges, and their weights.

    Rounding up to 1e-6 is repaired (`check_mixing_matrix`), so that float32 matrices keep the mean as exactly as any.

    Args:
        matrix: array-like of shape (N, N), symmetric, doubly stochastic, connected, not periodic; a torch tensor on the
            CPU is one.

    Raises:
        TypeError: not readable as real numbers.
        ValueError: not such a matrix; the error says what is wrong and where.

    Example:
        >>> topology = MatrixTopology([[0.8, 0.2, 0.0], [0.2, 0.5, 0.3], [0.0, 0.3, 0.7]])
        >>> topology.weights(1)
        {0: 0.2, 2: 0.3}
    """

    name = "matrix"

    def __init__(self, matrix: npt.ArrayLike) -> None:
        clean = check_mixing_matrix(matrix)
        super().__init__(clean.shape[0])
        np.fill_diagonal(clean, 0.0)  # what a worker keeps is what its edges leave
        self._weights = tuple({int(other): float(row[other]) for other in np.flatnonzero(row)} for row in clean)

    def rebuilt_for(self, workers: int) -> Topology:
        """Itself for its own number of workers; a matrix that was given has no rule for any other.

        Raises:
            TypeError: workers is not an integer.
            ValueError: another number; `reknit` keeps what is left of its edges.
        """
        return _itself(self, workers)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return tuple(self._weights[worker])

    def weights(self, worker: int, round: int = 0) -> dict[int, float]:
        """W[worker, j] for each neighbour j, as in the matrix."""
        worker, _ = self.checked(worker, round)
        return dict(self._weights[worker])


def _itself(topology: Topology, workers: int) -> Topology:
    if check_integer("workers", workers, 1) != topology.workers:
        raise ValueError(
            f"workers must be {topology.workers}, for which the {topology.name} was given: it has no rule for "
            f"another number, found {workers}; reknit(topology, members) joins what is left of it"
        )
    return topology
