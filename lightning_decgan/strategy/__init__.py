"""Lightning's grammar for gossip: `Trainer(strategy="decentralized_gossip")`.

The names are resolved on first use, because `autoload` lives here and is imported at every `import torch`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_decgan.strategy.gossip_strategy import DecentralizedGossipStrategy

__all__ = ["DecentralizedGossipStrategy"]


def __getattr__(name: str) -> object:
    if name == "DecentralizedGossipStrategy":
        from lightning_decgan.strategy.gossip_strategy import DecentralizedGossipStrategy

        return DecentralizedGossipStrategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
