"""Who talks to whom in a round of gossip, and how much: topologies and the mathematics of their mixing matrices.

Works in a notebook as it does under the strategy: NumPy and networkx only, no torch, no processes.

Example:
    >>> from lightning_decgan.topology import build_topology
    >>> ring = build_topology("ring", 8)
    >>> ring.neighbors(0), round(ring.spectral_gap(), 3), ring.rounds_for(1e-2)
    ((1, 7), 0.195, 22)
"""

from lightning_decgan.topology.base import Topology
from lightning_decgan.topology.checks import check_graph, check_mixing_matrix
from lightning_decgan.topology.given import GraphTopology, MatrixTopology
from lightning_decgan.topology.graphs import Complete, Exponential, Hypercube, Ring, Torus
from lightning_decgan.topology.mixing import (
    consensus_rate,
    metropolis_weights,
    random_consensus_rate,
    relabelled_consensus_rate,
    rounds_for,
    rounds_from_rate,
    spectral_gap,
)
from lightning_decgan.topology.power import PowerTopology, merges_well
from lightning_decgan.topology.registry import TOPOLOGIES, TopologySpec, build_topology, check_topology
from lightning_decgan.topology.schedules import OnePeerExponential, RandomMatching, RandomRing
from lightning_decgan.topology.survivors import Survivors, falls_apart, reknit

__all__ = [
    "TOPOLOGIES",
    "Complete",
    "Exponential",
    "GraphTopology",
    "Hypercube",
    "MatrixTopology",
    "OnePeerExponential",
    "PowerTopology",
    "RandomMatching",
    "RandomRing",
    "Ring",
    "Survivors",
    "Topology",
    "TopologySpec",
    "Torus",
    "build_topology",
    "check_graph",
    "check_mixing_matrix",
    "check_topology",
    "consensus_rate",
    "falls_apart",
    "merges_well",
    "metropolis_weights",
    "random_consensus_rate",
    "reknit",
    "relabelled_consensus_rate",
    "rounds_for",
    "rounds_from_rate",
    "spectral_gap",
]
