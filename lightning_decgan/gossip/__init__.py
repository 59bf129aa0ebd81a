"""Gossip among workers: flat vectors, edges, exchanges. The heart is `gossiper.py`."""

from lightning_decgan.gossip.edge import Edge, EdgeError, GlooEdge, Swap, connect_edges
from lightning_decgan.gossip.events import EventLog, GossipEvent
from lightning_decgan.gossip.exchange import Exchange, GossipReport
from lightning_decgan.gossip.gossiper import Gossiper, GossipTotals
from lightning_decgan.gossip.membership import Membership
from lightning_decgan.gossip.mender import Mender
from lightning_decgan.gossip.neighborhood import Neighborhood
from lightning_decgan.gossip.outer import OuterNesterov
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector, describe_tensors

__all__ = [
    "Edge",
    "EdgeError",
    "EventLog",
    "Exchange",
    "FlatBuffer",
    "FlatVector",
    "GlooEdge",
    "GossipEvent",
    "GossipReport",
    "GossipTotals",
    "Gossiper",
    "Membership",
    "Mender",
    "Neighborhood",
    "OuterNesterov",
    "Swap",
    "connect_edges",
    "describe_tensors",
]
