"""A DCGAN for images of 8 to 64 pixels, square, of any size in between.

Sizes are halved (rounded down) until 4 to 7 pixels are left: 64 -> 32 -> 16 -> 8 -> 4, 28 -> 14 -> 7, 12 -> 6. Every
halving is a strided 4x4 convolution, every doubling a transposed one that puts the lost odd pixel back. Channels double
where the size halves. One 3x3 convolution at full size stands at the image's end of both networks, because an 8-pixel
image leaves a single stage otherwise. The class-conditional forms, with conditional batch normalisation and projection,
are not in the paper. Nothing here samples, trains or reads data.

Source: Radford, Metz & Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (arXiv:1511.06434), sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import nn

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.networks.base import ImageDiscriminator, ImageGenerator
from lightning_decgan.gan.networks.conditional import LabelledSequential, ProjectionHead, batch_norm
from lightning_decgan.gan.networks.spectral import normalize_spectra

__all__ = ["DCGANDiscriminator", "DCGANGenerator", "pyramid"]

SMALLEST, LARGEST = 8, 64
INITIAL_STD = 0.02


def pyramid(image_size: int) -> tuple[int, ...]:
    """The sizes of the feature maps from the image down to the base of 4 to 7 pixels.

    Raises:
        TypeError: ``image_size`` is not an integer.
        ValueError: It is not from 8 to 64.

    Example:
        >>> pyramid(28)
        (28, 14, 7)
    """
    sizes = [check_integer("image_size", image_size, SMALLEST, LARGEST)]
    while sizes[-1] >= SMALLEST:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


class DCGANGenerator(ImageGenerator):
    """Latents to images by transposed convolutions, with a tanh at the end.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: Height and width of an image, 8 to 64.
        width: Channels of the feature maps at full size; they double with each halving of the size.
        norm: Batch normalisation after each layer but the last.
        num_classes: Classes of the batch normalisation, which is conditional then; None: called without labels.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is out of its range, or there are classes without a normalisation.

    Example:
        >>> DCGANGenerator(latent_dim=16, channels=3, image_size=28)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: int = 1,
        image_size: int = 8,
        width: int = 32,
        norm: bool = True,
        num_classes: int | None = None,
    ) -> None:
        sizes = pyramid(image_size)
        super().__init__(latent_dim, channels, image_size, num_classes)
        if num_classes is not None and not norm:
            raise ValueError(
                f"norm must be True for a class-conditional generator, found {norm!r} with num_classes={num_classes}: "
                "the normalisation is where labels come in"
            )
        features, base = check_integer("width", width, 1) * 2 ** (len(sizes) - 1), sizes[-1]
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, features * base * base, bias=not norm),
            nn.Unflatten(1, (features, base, base)),
            *_activated(features, norm, num_classes),
        ]
        for size in reversed(sizes[:-1]):
            up = nn.ConvTranspose2d(features, features // 2, 4, 2, 1, output_padding=size % 2, bias=not norm)
            features //= 2
            layers += [up, *_activated(features, norm, num_classes)]
        self.layers = LabelledSequential(*layers, nn.Conv2d(features, channels, 3, padding=1), nn.Tanh())
        self.apply(_initialize)


class DCGANDiscriminator(ImageDiscriminator):
    """Images to logits by strided convolutions and leaky rectifiers (slope 0.2).

    Args:
        channels: Channels of an image.
        image_size: Height and width of an image, 8 to 64.
        width: Channels of the feature maps at full size; they double with each halving of the size.
        norm: Batch normalisation after each strided convolution. Not together with a gradient penalty.
        spectral_norm: Divide each weight by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).
        num_classes: Classes of the projection; None: called without labels.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is out of its range.

    Example:
        >>> DCGANDiscriminator(channels=3, image_size=28)(torch.randn(2, 3, 28, 28)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 8,
        width: int = 32,
        norm: bool = False,
        spectral_norm: bool = False,
        num_classes: int | None = None,
    ) -> None:
        sizes = pyramid(image_size)
        super().__init__(channels, image_size, num_classes)
        features, base = check_integer("width", width, 1), sizes[-1]
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, padding=1), nn.LeakyReLU(0.2)]
        for _ in sizes[1:]:
            down = nn.Conv2d(features, 2 * features, 4, 2, 1, bias=not norm)
            features *= 2
            layers += [down, *([nn.BatchNorm2d(features)] if norm else []), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.head = ProjectionHead(features * base * base, num_classes)
        self.apply(_initialize)
        if spectral_norm:
            normalize_spectra(self)


def _activated(features: int, norm: bool, num_classes: int | None) -> list[nn.Module]:
    return [batch_norm(features, num_classes), nn.ReLU()] if norm else [nn.ReLU()]


@torch.no_grad()
def _initialize(layer: nn.Module) -> None:
    """Weights from N(0, 0.02^2), as in the paper (section 4); biases at 0, normalisation as it comes."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, INITIAL_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, ProjectionHead) and layer.embedding is not None:
        nn.init.normal_(layer.embedding.weight, 0.0, INITIAL_STD)
