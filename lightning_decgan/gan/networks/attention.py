"""Self-attention over the places of a feature map, as in SAGAN. Nothing here knows of images, labels or players."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_decgan.checks import check_integer

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    r"""Every place of a feature map looks at all places and adds what it finds there.

    With places as columns, ``X`` of shape (C, h w), and a 2x2 max-pooling ``P``:

    .. math::
        A = \mathrm{softmax}\big((W_q X)^\top P(W_k X)\big), \qquad
        Y = X + \gamma \, W_o \, P(W_v X) \, A^\top

    Each row of ``A`` sums to one over the h w / 4 places looked at. Queries and keys have C/8 channels, values C/2 (at
    least one each); no convolution has a bias and scores are not scaled, as in the paper. :math:`\gamma` begins at
    zero, so the layer begins as the identity.

    Args:
        features: Channels C of the feature map; height and width must be even.

    Raises:
        TypeError: ``features`` is not an integer.
        ValueError: ``features`` is below 1; in ``forward``, a side of the map is odd.

    Source: Zhang et al. 2019, "Self-Attention Generative Adversarial Networks" (arXiv:1805.08318), section 3; values
    of C/2 channels and the pooling are those of the authors' code.

    Example:
        >>> attention, maps = SelfAttention(16), torch.randn(2, 16, 8, 8)
        >>> torch.equal(attention(maps), maps)
        True
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        inner, values = max(1, check_integer("features", features, 1) // 8), max(1, features // 2)
        self.query = nn.Conv2d(features, inner, 1, bias=False)
        self.key = nn.Conv2d(features, inner, 1, bias=False)
        self.value = nn.Conv2d(features, values, 1, bias=False)
        self.output = nn.Conv2d(values, features, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """``(n, features, h, w)`` from feature maps of this shape."""
        height, width = maps.shape[2:]
        if height % 2 or width % 2:
            raise ValueError(f"maps must have an even height and width, found {height} x {width}")
        queries = self.query(maps).flatten(2)
        keys = functional.max_pool2d(self.key(maps), 2).flatten(2)
        values = functional.max_pool2d(self.value(maps), 2).flatten(2)
        # Not torch's scaled_dot_product_attention: its fused kernels cannot be differentiated twice, as a gradient
        # penalty does. With a quarter of the places as keys the matrix is small.
        weights = torch.softmax(queries.mT @ keys, dim=-1)
        found = (values @ weights.mT).unflatten(2, (height, width))
        return maps + self.gamma * self.output(found)
