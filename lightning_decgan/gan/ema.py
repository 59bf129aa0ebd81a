"""The averaged generator: a copy whose weights follow the training ones as an exponential moving average.

The copy is what one samples from; it is part of the module's state, but of no optimizer, and gradients never reach it.
Its tensors are written in place and never replaced.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["averaged_copy", "update_average"]


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` that is never trained: the start of an average.

    A network wrapped by :func:`torch.compile` is copied without the wrapper.

    Example:
        >>> ema = averaged_copy(nn.Linear(2, 1))
        >>> ema.weight.requires_grad
        False
    """
    return copy.deepcopy(getattr(network, "_orig_mod", network)).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the average: ``average = decay * average + (1 - decay) * parameter``; buffers are copied.

    Args:
        average: What :func:`averaged_copy` made of ``network``.
        network: The network in training.
        decay: From 0 (no memory) to 1, exclusive.

    Source: Karras et al. 2018, "Progressive Growing of GANs" (arXiv:1710.10196), section A.1; Yazıcı et al. 2019,
    "The Unusual Effectiveness of Averaging in GAN Training" (arXiv:1806.04498).

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = network.weight.data.fill_(0.0)
        >>> ema = averaged_copy(network)
        >>> _ = network.weight.data.fill_(1.0)
        >>> update_average(ema, network, decay=0.75)
        >>> ema.weight.item()
        0.25
    """
    means, values = list(average.parameters()), [parameter.detach() for parameter in network.parameters()]
    if means:
        get_ema_multi_avg_fn(decay)(means, values, 0)
    for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
        copied.copy_(buffer)
