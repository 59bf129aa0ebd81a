"""Decentralized training for PyTorch Lightning: neighbour gossip instead of all-reduce, made for GANs.

`Trainer(strategy="decentralized_gossip")` works without importing this package. The names below are imported on first
use: torch imports this module at the end of every `import torch` of the environment (strategy/autoload.py says why), so
it must cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lightning_decgan.strategy.autoload import install

if TYPE_CHECKING:
    from lightning_decgan.callbacks import FaultInjector
    from lightning_decgan.gan import DecentralizedGANModule
    from lightning_decgan.gossip import OuterNesterov
    from lightning_decgan.gossip.compression import PowerGossip, RandomSubset
    from lightning_decgan.optim import OptimisticAdam, OptimisticSGD
    from lightning_decgan.strategy import DecentralizedGossipStrategy
    from lightning_decgan.topology import build_topology

__version__ = "0.1.0"

_HOMES = {
    "DecentralizedGANModule": "gan",
    "DecentralizedGossipStrategy": "strategy",
    "FaultInjector": "callbacks",
    "OptimisticAdam": "optim",
    "OptimisticSGD": "optim",
    "OuterNesterov": "gossip",
    "PowerGossip": "gossip.compression",
    "RandomSubset": "gossip.compression",
    "build_topology": "topology",
}
__all__ = [
    "DecentralizedGANModule",
    "DecentralizedGossipStrategy",
    "FaultInjector",
    "OptimisticAdam",
    "OptimisticSGD",
    "OuterNesterov",
    "PowerGossip",
    "RandomSubset",
    "build_topology",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


# `import lightning_decgan` makes the strategy's names known, also where torch's autoloading is turned off.
install()
