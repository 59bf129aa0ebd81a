"""The averaged generator: a copy whose weights follow the training ones as an exponential moving average.

The copy is what one samples from; it is part of the module's state, but of no optimizer, and gradients never reach it.
Its tensors are written in place and never replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["averaged_copy", "precisely", "update_average", "warmed_up"]


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` that is never trained: the start of an average.

    A network wrapped by :func:`torch.compile` is copied without the wrapper, one in half precision in single precision.

    Example:
        >>> ema = averaged_copy(nn.Linear(2, 1).bfloat16())
        >>> ema.weight.requires_grad, ema.weight.dtype
        (False, torch.float32)
    """
    average = copy.deepcopy(getattr(network, "_orig_mod", network)).requires_grad_(False)
    return average._apply(precisely(lambda tensor: tensor))


def precisely(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``convert``, as :meth:`torch.nn.Module._apply` calls it, except that nothing gets less than single precision.

    A slow average moves by less than what half precision rounds away, so it would stand still.

    Example:
        >>> precisely(lambda tensor: tensor.bfloat16())(torch.tensor([1.001]))
        tensor([1.0010])
        >>> precisely(lambda tensor: tensor.double())(torch.zeros(1)).dtype
        torch.float64
    """

    def converted(tensor: Tensor) -> Tensor:
        found = convert(tensor)
        if found.is_floating_point() and found.itemsize < 4:
            return tensor.to(found.device, torch.float32)
        return found

    return converted


def warmed_up(decay: float, updates: int) -> float:
    """The decay of an average that is still young: ``min(decay, (1 + n) / (10 + n))`` after n updates.

    Without it an average of decay 0.999 is mostly the untrained network for its first thousand steps.

    Source: TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (its documentation).

    Example:
        >>> [round(warmed_up(0.999, n), 3) for n in (0, 10, 100_000)]
        [0.1, 0.55, 0.999]
    """
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the average: ``average = decay * average + (1 - decay) * value``, for parameters and statistics.

    The running statistics of normalisation layers belong to the weights that they were taken with, so they are averaged
    as well; other buffers (counters, the singular vectors of spectral normalisation) are copied.

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
    means: list[Tensor] = list(average.parameters())
    values: list[Tensor] = [parameter.detach() for parameter in network.parameters()]
    statistics = {
        id(buffer) for layer in average.modules() if isinstance(layer, _NormBase) for buffer in layer.buffers()
    }
    for mean, buffer in zip(average.buffers(), network.buffers(), strict=True):
        if id(mean) in statistics and mean.is_floating_point():
            means.append(mean)
            values.append(buffer)
        else:
            mean.copy_(buffer)
    if means:
        # The average may be kept in more precision than the network has.
        same = [value.to(mean.dtype) for mean, value in zip(means, values, strict=True)]
        get_ema_multi_avg_fn(decay)(means, same, 0)
