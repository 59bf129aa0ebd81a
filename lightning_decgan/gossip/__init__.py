"""Gossip among workers: flat vectors, edges, exchanges. The heart is `gossiper.py`."""

from lightning_decgan.gossip.edge import Edge, EdgeError, GlooEdge, Swap, connect_edges
from lightning_decgan.gossip.gossiper import Exchange, Gossiper, GossipReport, GossipTotals
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector, describe_tensors

__all__ = [
    "Edge",
    "EdgeError",
    "Exchange",
    "FlatBuffer",
    "FlatVector",
    "GlooEdge",
    "GossipReport",
    "GossipTotals",
    "Gossiper",
    "Swap",
    "connect_edges",
    "describe_tensors",
]
