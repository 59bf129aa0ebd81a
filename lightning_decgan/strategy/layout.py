"""Which tensors of a LightningModule gossip: everything that an optimizer of the run holds, each once.

Frozen parameters that no optimizer holds start equal and stay equal; EMA copies stay local, as averaging is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lightning_decgan.gossip import Exchange, FlatVector, Gossiper, describe_tensors

__all__ = ["Layout", "gossiped_tensors", "gossiped_vector"]


class Layout:
    """What gossips, followed through a run: callbacks unfreeze parameters, user code rebinds buffers.

    Args:
        module: what is trained.
        buffers: `"average"`: its floating-point buffers gossip as well.
        on_device: keep what is sent on the tensors' device (NCCL).
        make_exchange: makes the exchange of a vector.
    """

    def __init__(
        self, module: Module, buffers: str, on_device: bool, make_exchange: Callable[[FlatVector], Exchange]
    ) -> None:
        self._module, self._buffers, self._on_device = module, buffers, on_device
        self._make_exchange = make_exchange
        self._known: list[int] = []

    def lay_out(self, optimizers: Sequence[Optimizer]) -> tuple[FlatVector, Exchange]:
        """The vector of what these optimizers hold, and its exchange."""
        self._known = self._signature(optimizers)
        named = gossiped_tensors(self._module, optimizers, self._buffers)
        vector = gossiped_vector(named, optimizers, self._on_device)
        return vector, self._make_exchange(vector)

    def follow(self, optimizers: Sequence[Optimizer], gossiper: Gossiper) -> None:
        """Let the gossiper gossip what the optimizers and the module hold now."""
        signature = self._signature(optimizers)
        if signature == self._known:
            return
        named = gossiped_tensors(self._module, optimizers, self._buffers)
        if describe_tensors(named.items(), "tensor") == list(gossiper.vector.layout):
            gossiper.vector.rebind(list(named.values()))
            self._known = signature
        else:
            gossiper.relayout(*self.lay_out(optimizers))

    def _signature(self, optimizers: Sequence[Optimizer]) -> list[int]:
        """Which tensors gossip, cheaply enough to ask after every batch."""
        held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        if self._buffers == "average":
            held += [id(buffer) for buffer in self._module.buffers()]
        return held


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
