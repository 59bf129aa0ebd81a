"""Layers that know the class of a sample, and a sequence that hands labels on to them.

The generator hears of the class in its normalisation (conditional batch normalisation), the discriminator in its last
layer (projection). Without classes the same two are a plain batch normalisation and a plain linear layer, so that a
network is written once for both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_decgan.checks import check_integer

__all__ = [
    "ConditionalBatchNorm2d",
    "LabelledModule",
    "LabelledSequential",
    "ProjectionHead",
    "batch_norm",
    "without_autocast",
]


class LabelledModule(nn.Module):
    """A layer whose ``forward`` takes labels besides its input; :class:`LabelledSequential` gives them to it."""


class LabelledSequential(nn.Sequential):
    """Layers in sequence, called with labels that only those get which are a :class:`LabelledModule`.

    Example:
        >>> layers = LabelledSequential(nn.ReLU(), ConditionalBatchNorm2d(3, num_classes=2))
        >>> layers(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])).shape
        torch.Size([2, 3, 4, 4])
    """

    @override
    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        """The last layer's output; ``labels`` are ``(n,)`` int64, or None in an unconditional network."""
        for layer in self:
            input = layer(input, labels) if isinstance(layer, LabelledModule) else layer(input)
        return input


class ConditionalBatchNorm2d(LabelledModule):
    r"""Batch normalisation whose gain and bias belong to the class of the sample.

    .. math::
        y_i = (1 + g_{c_i}) \, \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + b_{c_i}

    Mean and variance are those of the whole batch, over samples of all classes, in evaluation mode the running ones.
    It begins as a normalisation without gain and bias: both embeddings at zero.

    Args:
        features: Channels of the feature maps.
        num_classes: Classes, as many gains and biases.
        eps: Added to the variance.
        momentum: Share of a new batch in the running statistics.

    Raises:
        TypeError: ``features`` or ``num_classes`` is not an integer.
        ValueError: One of them is below 1.

    Source: Dumoulin, Shlens & Kudlur 2017, "A Learned Representation for Artistic Style" (arXiv:1610.07629), for
    a gain and bias per class; de Vries et al. 2017, "Modulating early visual processing by language"
    (arXiv:1707.00683), for batch statistics and embeddings that are a change from a gain of 1.

    Example:
        >>> norm = ConditionalBatchNorm2d(1, num_classes=2)
        >>> norm.bias.weight.data[1] = 5.0
        >>> norm(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])).flatten().round()
        tensor([-1.,  6.], grad_fn=<RoundBackward0>)
    """

    def __init__(self, features: int, num_classes: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_integer("num_classes", num_classes, 1)
        self.normalize = nn.BatchNorm2d(features, eps, momentum, affine=False)
        self.gain = nn.Embedding(num_classes, features)
        self.bias = nn.Embedding(num_classes, features)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    @override
    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        """``(n, features, h, w)`` from feature maps of this shape and labels ``(n,)``."""
        normalized = self.normalize(maps)
        # Mixed precision: maps stay in the half precision that they came in.
        gain, bias = (table(labels).to(normalized.dtype)[..., None, None] for table in (self.gain, self.bias))
        return torch.addcmul(normalized + bias, normalized, gain)


class ProjectionHead(LabelledModule):
    r"""The last layer of a discriminator: a logit of the features, and where there are classes of the class as well.

    .. math::
        D(x, c) = \psi^\top \phi(x) + \beta + \langle v_c, \phi(x) \rangle

    It computes in the parameters' precision also under autocast: logits in half precision have two or three digits, and
    the layer costs nothing.

    Args:
        features: Length of the feature vector ``phi(x)``.
        num_classes: Classes, as many vectors ``v``; None: only the first two terms.

    Raises:
        TypeError: ``features`` or ``num_classes`` is not an integer.
        ValueError: One of them is below 1.

    Source: Miyato & Koyama 2018, "cGANs with Projection Discriminator" (arXiv:1802.05637), figure 1 (d).

    Example:
        >>> head = ProjectionHead(4, num_classes=2)
        >>> head(torch.zeros(3, 4), torch.tensor([0, 1, 1])).unique() == head.linear.bias
        tensor([True])
    """

    def __init__(self, features: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(check_integer("features", features, 1), 1)
        self.embedding = (
            None if num_classes is None else nn.Embedding(check_integer("num_classes", num_classes, 1), features)
        )

    @override
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``(n,)`` from feature vectors ``(n, features)`` and labels ``(n,)``."""
        with without_autocast(features):
            features = features.to(self.linear.bias.dtype)
            logits = self.linear(features).squeeze(1)
            if self.embedding is not None:
                logits = logits + (self.embedding(labels) * features).sum(1)
        return logits


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A block in which mixed precision is off on the tensor's device; on ``meta`` there is none to switch off.

    Example:
        >>> a = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(a):
        ...     (a @ a).dtype
        torch.float32
    """
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def batch_norm(features: int, num_classes: int | None) -> nn.Module:
    """A batch normalisation for a :class:`LabelledSequential`: conditional where there are classes.

    Example:
        >>> [type(batch_norm(3, num_classes)).__name__ for num_classes in (None, 10)]
        ['BatchNorm2d', 'ConditionalBatchNorm2d']
    """
    return nn.BatchNorm2d(features) if num_classes is None else ConditionalBatchNorm2d(features, num_classes)
