"""What a swap carries: codecs that make messages smaller and keep the mean of the two ends of an edge exactly."""

from lightning_decgan.gossip.compression.base import Codec, Compression
from lightning_decgan.gossip.compression.casting import BFloat16
from lightning_decgan.gossip.compression.power import PowerGossip
from lightning_decgan.gossip.compression.quantizing import Int8
from lightning_decgan.gossip.compression.registry import build_compression
from lightning_decgan.gossip.compression.subset import RandomSubset

__all__ = ["BFloat16", "Codec", "Compression", "Int8", "PowerGossip", "RandomSubset", "build_compression"]
