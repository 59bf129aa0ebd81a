"""How residual blocks are stacked for an image size: the plans of the ResNet GAN and of the Self-Attention GAN.

A generator is a linear layer onto a small map, blocks that double its size, and a convolution to the image; a
discriminator is blocks that halve the image and a sum over the map that is left. A plan says, for an image size, how
many blocks of which width there are. Nothing here initialises or normalises weights.

Source: Gulrajani et al. 2017 (arXiv:1704.00028), appendix: 32 pixels; Miyato et al. 2018 (arXiv:1802.05957), appendix
B.4: 32 and 48 pixels; the code of Miyato & Koyama 2018 (arXiv:1802.05637): 64 pixels; the code of Zhang et al. 2019
(arXiv:1805.08318): 128 pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lightning_decgan.gan.networks.attention import SelfAttention
from lightning_decgan.gan.networks.base import one_of
from lightning_decgan.gan.networks.blocks import DownBlock, GlobalPool, UpBlock

__all__ = [
    "DISCRIMINATOR_PLANS",
    "GENERATOR_PLANS",
    "DiscriminatorPlan",
    "GeneratorPlan",
    "discriminator_layers",
    "generator_layers",
]


@dataclass(frozen=True)
class GeneratorPlan:
    """How a generator grows: ``base`` pixels first, then a doubling from each of ``widths`` to the next.

    ``widths`` are multiples of the network's width, from the base to the image.
    """

    base: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class DiscriminatorPlan:
    """How a discriminator shrinks: a block for each of ``widths``, of which the first ``halvings`` halve the map."""

    widths: tuple[int, ...]
    halvings: int


GENERATOR_PLANS: Mapping[int, GeneratorPlan] = {
    32: GeneratorPlan(4, (1, 1, 1, 1)),
    48: GeneratorPlan(6, (8, 4, 2, 1)),
    64: GeneratorPlan(4, (16, 8, 4, 2, 1)),
    128: GeneratorPlan(4, (16, 16, 8, 4, 2, 1)),
}
"""By image size."""

DISCRIMINATOR_PLANS: Mapping[int, DiscriminatorPlan] = {
    32: DiscriminatorPlan((1, 1, 1, 1), halvings=2),
    48: DiscriminatorPlan((1, 2, 4, 8, 16), halvings=4),
    64: DiscriminatorPlan((1, 2, 4, 8, 16), halvings=5),
    128: DiscriminatorPlan((1, 2, 4, 8, 16, 16), halvings=5),
}
"""By image size."""


def generator_layers(
    latent_dim: int,
    channels: int,
    image_size: int,
    width: int,
    num_classes: int | None = None,
    attention_size: int | None = None,
) -> list[nn.Module]:
    """The layers from latents to images, by the plan of ``image_size``.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: A key of :data:`GENERATOR_PLANS`.
        width: Channels of the last feature maps.
        num_classes: Classes of the blocks' conditional normalisation; the one before the image is always plain.
        attention_size: Size of the feature maps after which self-attention comes; None: no attention.

    Raises:
        ValueError: There are no feature maps of ``attention_size``.

    Example:
        >>> [type(layer).__name__ for layer in generator_layers(8, 3, 32, width=4, attention_size=16)][2:6]
        ['UpBlock', 'UpBlock', 'SelfAttention', 'UpBlock']
    """
    plan = GENERATOR_PLANS[image_size]
    widths, size = [width * multiple for multiple in plan.widths], plan.base
    if attention_size is not None:
        one_of("attention_size", attention_size, [size << k for k in range(1, len(widths))])
    layers: list[nn.Module] = [nn.Linear(latent_dim, widths[0] * size**2), nn.Unflatten(1, (widths[0], size, size))]
    for before, after in itertools.pairwise(widths):
        layers.append(UpBlock(before, after, num_classes))
        size *= 2
        if size == attention_size:
            layers.append(SelfAttention(after))
    return [*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]


def discriminator_layers(
    channels: int,
    image_size: int,
    width: int,
    *,
    layer_norm: bool = False,
    wide_hidden: bool = False,
    attention_size: int | None = None,
    mean: bool = False,
) -> tuple[list[nn.Module], int]:
    """The layers from images to feature vectors, by the plan of ``image_size``, and the vectors' length.

    Args:
        channels: Channels of an image.
        image_size: A key of :data:`DISCRIMINATOR_PLANS`.
        width: Channels of the first feature maps.
        layer_norm: Layer normalisation in all blocks but the first.
        wide_hidden: A block's first convolution has the block's outgoing width already, not its incoming one.
        attention_size: Size of the feature maps after which self-attention comes; None: no attention.
        mean: Global mean instead of sum.

    Raises:
        ValueError: There are no feature maps of ``attention_size``.

    Example:
        >>> layers, features = discriminator_layers(3, 48, width=4)
        >>> len(layers), features
        (7, 64)
    """
    plan = DISCRIMINATOR_PLANS[image_size]
    widths, size = [width * multiple for multiple in plan.widths], image_size
    if attention_size is not None:
        sizes = [image_size >> k for k in range(1, plan.halvings + 1)]
        one_of("attention_size", attention_size, [size for size in sizes if size % 2 == 0])
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
        first, halve = index == 0, index < plan.halvings
        hidden = after if first or wide_hidden else before
        layers.append(DownBlock(before, after, hidden, halve=halve, layer_norm=layer_norm, first=first))
        size = size // 2 if halve else size
        if halve and size == attention_size:
            layers.append(SelfAttention(after))
    return [*layers, nn.ReLU(), GlobalPool(mean)], widths[-1]
