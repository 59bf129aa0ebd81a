"""Which tensors of a LightningModule gossip: everything that an optimizer of the run holds, each once.

Frozen parameters that no optimizer holds start equal and stay equal; EMA copies stay local, as averaging is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lightning_decgan.gossip import FlatVector

__all__ = ["gossiped_tensors", "gossiped_vector"]


def gossiped_tensors(module: Module, optimizers: Sequence[Optimizer], buffers: str) -> dict[str, Tensor]:
    """Names and tensors in the order of `named_parameters`; `buffers="average"` adds floating-point buffers.

    Raises:
        ValueError: an optimizer holds a parameter that the module does not register, so that nobody could name it.
    """
    held = {parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    named: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p in held}
    if len(named) < len(held):
        raise ValueError(
            f"the optimizers hold {len(held) - len(named)} parameters that {type(module).__name__} does not register;"
            " workers could not average them. Make them attributes of the module (nn.Parameter, nn.ParameterList)."
        )
    if buffers == "average":
        named |= {name: b for name, b in module.named_buffers() if b.is_floating_point() or b.is_complex()}
    return named


def gossiped_vector(named: dict[str, Tensor], optimizers: Sequence[Optimizer], on_device: bool = False) -> FlatVector:
    """The flat vector of these tensors, at the anchors of those optimizers that have a method `lookahead`."""
    holders = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }

    def lookahead(tensor: Tensor) -> Tensor | None:
        ask = getattr(holders.get(tensor), "lookahead", None)
        return None if ask is None else ask(tensor)

    return FlatVector(named.items(), lookahead, on_device)
