"""Which tensors of a LightningModule gossip: everything that an optimizer of the run holds, each once.

Frozen parameters that no optimizer holds start equal and stay equal; EMA copies stay local, as averaging is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lightning_decgan.gossip import FlatVector

__all__ = ["count_optimized", "gossiped_vector"]


def count_optimized(optimizers: Sequence[Optimizer]) -> int:
    """How many parameters the optimizers hold; fine-tuning callbacks may add some while training."""
    return sum(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)


def gossiped_vector(module: Module, optimizers: Sequence[Optimizer], buffers: str) -> FlatVector:
    """The flat vector of a module, in the order of `named_parameters`, at the anchors of optimistic optimizers.

    Args:
        module: whose parameters.
        optimizers: those with a method `lookahead` are asked for the way from a live parameter to its anchor.
        buffers: `"average"` adds floating-point buffers to the vector, `"local"` does not.
    """
    holders = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named: list[tuple[str, Tensor]] = [(name, p) for name, p in module.named_parameters() if p in holders]
    if buffers == "average":
        named += [(name, b) for name, b in module.named_buffers() if b.is_floating_point() or b.is_complex()]

    def lookahead(tensor: Tensor) -> Tensor | None:
        ask = getattr(holders.get(tensor), "lookahead", None)
        return None if ask is None else ask(tensor)

    return FlatVector(named, lookahead)
