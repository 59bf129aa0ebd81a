"""From what a user writes to a topology: a name, a graph, a matrix, a class or function, or a topology as it is.

`build_topology` is the one door; every error it raises names the argument, what was found and what would be valid, and
comes before any process is started. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import networkx as nx
import numpy.typing as npt

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.base import LARGEST_MATRIX_WORKERS, Topology
from lightning_decgan.topology.checks import TOLERANCE, check_connected, check_mixing_matrix
from lightning_decgan.topology.given import GraphTopology, MatrixTopology
from lightning_decgan.topology.graphs import Complete, Exponential, Hypercube, Ring, Torus
from lightning_decgan.topology.schedules import OnePeerExponential, RandomMatching, RandomRing

TOPOLOGIES: dict[str, type[Topology]] = {
    topology.name: topology
    for topology in (Ring, Exponential, OnePeerExponential, RandomMatching, RandomRing, Torus, Hypercube, Complete)
}
"""The topologies that a name stands for; put a class of your own in to give it one."""

TopologySpec = str | Topology | Callable[[int], Topology] | nx.Graph | npt.ArrayLike
"""What `build_topology` takes."""

_SOUND = (*TOPOLOGIES.values(), GraphTopology, MatrixTopology)
_VALID = "a name, a Topology, a callable taking the number of workers, a networkx.Graph or an (N, N) matrix"


def build_topology(spec: TopologySpec, workers: int, *, seed: int = 0, rounds: int = 1) -> Topology:
    """Make a topology of N workers of whatever describes one.

    Args:
        spec: a name of `TOPOLOGIES`, exactly; a `Topology`; a class or function taking the number of workers; a
            networkx graph; or an (N, N) mixing matrix, array-like.
        workers: N, at least 1.
        seed: of random topologies that are given by name.
        rounds: gossip rounds a step; a random ring given by name keeps its draw for so many rounds.

    Returns:
        A topology of exactly that many workers. One of a foreign class has been through `check_topology`.

    Raises:
        TypeError: spec is none of these, or a setting is not an integer.
        ValueError: an unknown name, another number of workers, a graph or matrix that gossip cannot use.

    Example:
        >>> build_topology("ring", 4).neighbors(0)
        (1, 3)
        >>> build_topology([[0.5, 0.5], [0.5, 0.5]], 2).weights(0)
        {1: 0.5}
        >>> build_topology("rign", 4)
        Traceback (most recent call last):
        ...
        ValueError: topology must be one of complete, exponential, hypercube, one_peer_exponential, random_matching, \
random_ring, ring, torus, found 'rign'; did you mean 'ring'?
    """
    workers = check_integer("workers", workers, 1)
    seed = check_integer("seed", seed, 0)
    rounds = check_integer("rounds", rounds, 1)
    topology = _make(spec, workers, seed, rounds)
    if topology.workers != workers:
        raise ValueError(
            f"topology must be for {workers} workers, as many as take part, found {topology.name} of {topology.workers}"
        )
    if type(topology) not in _SOUND:
        check_topology(topology)
    return topology


def _make(spec: TopologySpec, workers: int, seed: int, rounds: int) -> Topology:
    if isinstance(spec, str):
        if spec not in TOPOLOGIES:
            close = difflib.get_close_matches(spec.lower().replace("-", "_"), TOPOLOGIES, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"topology must be one of {', '.join(sorted(TOPOLOGIES))}, found {spec!r}{hint}")
        return TOPOLOGIES[spec].from_settings(workers, seed=seed, rounds=rounds)
    if isinstance(spec, Topology):
        return spec
    if isinstance(spec, nx.Graph):
        return GraphTopology(spec)
    if callable(spec):
        made = spec(workers)
        if not isinstance(made, Topology):
            raise TypeError(f"topology must return a Topology when called with {workers}, found {type(made).__name__}")
        return made
    if hasattr(spec, "__array__") or (isinstance(spec, Sequence) and not isinstance(spec, bytes)):
        check_mixing_matrix(spec, workers)
        return MatrixTopology(spec)
    raise TypeError(f"topology must be {_VALID}, found {spec!r} ({type(spec).__name__})")


def check_topology(topology: Topology) -> None:
    """Raise unless a topology of a class of one's own keeps the mean and connects everybody.

    An edge that one end knows and the other does not would leave a worker waiting until its deadline; here it is an
    error. Looks at every round of a period, or at the first 16 of a schedule drawn anew, at a cost of O(edges) each.

    Args:
        topology: of any class.

    Raises:
        ValueError: a neighbour that does not exist, edges or weights that differ at their two ends, weights that are
            not positive or exceed 1 together, neighbours that `links` does not know, or rounds that together leave
            somebody apart. The error names the worker and the round.

    Example:
        >>> class Chain(Topology):
        ...     def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        ...         return (worker + 1,) if worker + 1 < self.workers else ()
        >>> check_topology(Chain(3))
        Traceback (most recent call last):
        ...
        ValueError: topology custom must be symmetric, found in round 0 that worker 0 meets 1, but 1 does not meet 0
    """
    name = f"topology {topology.name}"
    everybody = range(topology.workers)
    union: nx.Graph[int] = nx.empty_graph(topology.workers)
    links = [set(topology.links(worker)) for worker in everybody]
    for round in range(16 if topology.period is None else check_integer(f"{name}: period", topology.period, 1)):
        rows = []
        for worker in everybody:
            neighbors = topology.neighbors(worker, round)
            where = f"found in round {round} for worker {worker}"
            if any(other == worker or other not in everybody for other in neighbors):
                raise ValueError(
                    f"{name} must have neighbours in 0..{topology.workers - 1}, others than the worker "
                    f"itself, {where}: {neighbors}"
                )
            if list(neighbors) != sorted(set(neighbors)):
                raise ValueError(f"{name} must list neighbours sorted and once, {where}: {neighbors}")
            if not links[worker].issuperset(neighbors):
                raise ValueError(
                    f"{name} must know all neighbours as links, {where}: {neighbors}, with the links "
                    f"{tuple(sorted(links[worker]))}"
                )
            union.add_edges_from((worker, other) for other in neighbors)
            rows.append(set(neighbors))
        for worker in everybody:
            for other in sorted(rows[worker]):
                if worker not in rows[other]:
                    raise ValueError(
                        f"{name} must be symmetric, found in round {round} that worker {worker} meets "
                        f"{other}, but {other} does not meet {worker}"
                    )
        _check_weights(name, topology, round, rows)
    if topology.period is not None:
        check_connected(f"{name}, all rounds together,", union)
    if topology.period == 1 and topology.workers <= LARGEST_MATRIX_WORKERS:
        check_mixing_matrix(topology.mixing_matrix(), topology.workers)


def _check_weights(name: str, topology: Topology, round: int, rows: list[set[int]]) -> None:
    weights = [topology.weights(worker, round) for worker in range(topology.workers)]
    for worker, row in enumerate(weights):
        where = f"found in round {round} for worker {worker}"
        if set(row) != rows[worker]:
            raise ValueError(
                f"{name} must weigh each neighbour, {where}: weights of {tuple(sorted(row))}, neighbours "
                f"{tuple(sorted(rows[worker]))}"
            )
        if (
            not all(math.isfinite(weight) and weight > 0 for weight in row.values())
            or sum(row.values()) > 1 + TOLERANCE
        ):
            raise ValueError(f"{name} must have positive weights with a sum of at most 1, {where}: {row}")
        for other, weight in row.items():
            if weights[other][worker] != weight:
                raise ValueError(
                    f"{name} must have the same weight at both ends of an edge, {where} and {other}: "
                    f"{weight!r} and {weights[other][worker]!r}"
                )
