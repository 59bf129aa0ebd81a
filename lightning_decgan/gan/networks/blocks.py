"""Residual blocks, which the ResNet GAN and the Self-Attention GAN are made of, and the weights that they begin with.

A block of a generator doubles the size of a feature map, a block of a discriminator may halve it. Nothing here chooses
how many there are, or normalises spectra.

Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv:1704.00028), appendix; Miyato et al. 2018,
"Spectral Normalization for Generative Adversarial Networks" (arXiv:1802.05957), appendix B.4. Pre-activation: He et al.
2016, "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_decgan.gan.networks.conditional import LabelledModule, LabelledSequential, ProjectionHead, batch_norm

__all__ = ["DownBlock", "GlobalPool", "UpBlock", "initialize"]


class UpBlock(LabelledModule):
    """A pre-activation residual block that doubles height and width by repeating pixels.

    ``up(conv1x1(x)) + conv3x3(relu(norm(conv3x3(up(relu(norm(x)))))))``, with (conditional) batch normalisation. No
    convolution has a bias: a batch normalisation further on takes every constant of a channel away again, and a
    parameter without a gradient would only follow rounding errors, on each worker another way. (The authors' code has
    them. Where self-attention follows, its queries would notice.)

    Args:
        in_features: Channels that come in.
        out_features: Channels that go out.
        num_classes: Classes of the conditional normalisation, None for a plain one.

    Example:
        >>> UpBlock(4, 2)(torch.zeros(3, 4, 8, 8)).shape
        torch.Size([3, 2, 16, 16])
    """

    def __init__(self, in_features: int, out_features: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.residual = LabelledSequential(
            batch_norm(in_features, num_classes),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(in_features, out_features, 3, padding=1, bias=False),
            batch_norm(out_features, num_classes),
            nn.ReLU(),
            nn.Conv2d(out_features, out_features, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Conv2d(in_features, out_features, 1, bias=False)

    @override
    def forward(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """``(n, out_features, 2 h, 2 w)`` from ``(n, in_features, h, w)`` and labels ``(n,)``."""
        # The papers repeat pixels first; a 1x1 convolution does not mind, and takes a quarter of the time before.
        return self.residual(maps, labels) + _repeat_pixels(self.shortcut(maps))


def _repeat_pixels(maps: Tensor) -> Tensor:
    """Every pixel four times: ``(n, c, 2 h, 2 w)``."""
    if not torch.compiler.is_compiling():
        return functional.interpolate(maps, scale_factor=2)
    # torch 2.13 on a CPU: compiled with autocast to bfloat16, the gradient of interpolate here is zero.
    count, channels, height, width = maps.shape
    repeated = maps[:, :, :, None, :, None].expand(count, channels, height, 2, width, 2)
    return repeated.reshape(count, channels, 2 * height, 2 * width)


class DownBlock(nn.Module):
    """A pre-activation residual block that may halve height and width by averaging 2x2 pixels.

    ``conv1x1(pool(x)) + pool(conv3x3(relu(norm(conv3x3(relu(norm(x)))))))``; without halving and change of width the
    shortcut is the identity.

    Args:
        in_features: Channels that come in.
        out_features: Channels that go out.
        hidden_features: Channels in between.
        halve: Whether height and width are halved.
        layer_norm: Normalise over channels, height and width of each sample (with a gain and bias per channel).
        first: The block reads images, so it has no rectifier and no normalisation in front, and none in between.

    Example:
        >>> DownBlock(3, 8, 8, halve=True, first=True)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int,
        *,
        halve: bool,
        layer_norm: bool = False,
        first: bool = False,
    ) -> None:
        super().__init__()
        normalize = layer_norm and not first
        before: list[nn.Module] = [] if first else [nn.ReLU()]
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halve else []
        self.residual = nn.Sequential(
            *([_layer_norm(in_features)] if normalize else []),
            *before,
            nn.Conv2d(in_features, hidden_features, 3, padding=1),
            *([_layer_norm(hidden_features)] if normalize else []),
            nn.ReLU(),
            nn.Conv2d(hidden_features, out_features, 3, padding=1),
            *pool,
        )
        # Averaging commutes with a 1x1 convolution and goes first, where it leaves a quarter of the work.
        change = halve or in_features != out_features
        self.shortcut = nn.Sequential(*pool, *([nn.Conv2d(in_features, out_features, 1)] if change else []))

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """``(n, out_features, h', w')`` from ``(n, in_features, h, w)``; h' is h or h / 2."""
        return self.residual(maps) + self.shortcut(maps)


class GlobalPool(nn.Module):
    """The sum (or mean) over all places of a feature map.

    Args:
        mean: The mean instead of the sum.

    Example:
        >>> GlobalPool()(torch.ones(2, 3, 4, 4))
        tensor([[16., 16., 16.],
                [16., 16., 16.]])
    """

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """``(n, features)`` from ``(n, features, h, w)``."""
        return maps.mean((2, 3)) if self.mean else maps.sum((2, 3))


@torch.no_grad()
def initialize(network: nn.Module, residual_gain: float) -> None:
    """Weights from Glorot's uniform distribution, times ``residual_gain`` in the residual branches; biases at 0.

    Args:
        network: Made of these blocks, and of linear layers, convolutions and projections outside of them.
        residual_gain: The square root of 2 makes it He's initialisation where as many channels go out as come in.

    Source: Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16.

    Example:
        >>> block = UpBlock(4, 4)
        >>> initialize(block, residual_gain=0.0)
        >>> block.residual[3].weight.any(), block.shortcut.weight.any()
        (tensor(False), tensor(True))
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, ProjectionHead) and layer.embedding is not None:
            nn.init.xavier_uniform_(layer.embedding.weight)
    for block in network.modules():
        if isinstance(block, UpBlock | DownBlock):
            for layer in block.residual:
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(residual_gain)


def _layer_norm(features: int) -> nn.Module:
    """Over (C, H, W) of a sample, with a gain and bias per channel: a group normalisation with a single group."""
    return nn.GroupNorm(1, features)
