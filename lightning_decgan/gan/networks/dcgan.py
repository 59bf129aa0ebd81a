"""A DCGAN for images of 8 to 64 pixels, square, of any size in between.

Sizes are halved (rounded down) until 4 to 7 pixels are left: 64 -> 32 -> 16 -> 8 -> 4, 28 -> 14 -> 7, 12 -> 6. Every
halving is a strided 4x4 convolution, every doubling a transposed one that puts the lost odd pixel back. Channels double
where the size halves. One 3x3 convolution at full size stands at the image's end of both networks, because an 8-pixel
image leaves a single stage otherwise. Nothing here samples, trains or reads data.

Source: Radford, Metz & Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (arXiv:1511.06434), sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalize_spectrum
from typing_extensions import override

from lightning_decgan.gan.checks import count

__all__ = ["DCGANDiscriminator", "DCGANGenerator", "pyramid"]

SMALLEST, LARGEST = 8, 64
INITIAL_STD = 0.02


def pyramid(image_size: int) -> tuple[int, ...]:
    """The sizes of the feature maps from the image down to the base of 4 to 7 pixels.

    Raises:
        ValueError: ``image_size`` is not an integer from 8 to 64.

    Example:
        >>> pyramid(28)
        (28, 14, 7)
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not SMALLEST <= image_size <= LARGEST:
        raise ValueError(f"image_size must be an integer from {SMALLEST} to {LARGEST}, found {image_size!r}")
    sizes = [image_size]
    while sizes[-1] >= SMALLEST:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


class DCGANGenerator(nn.Module):
    """Latents to images by transposed convolutions, with a tanh at the end.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: Height and width of an image, 8 to 64.
        width: Channels of the feature maps at full size; they double with each halving of the size.
        norm: Batch normalisation after each layer but the last.

    Raises:
        ValueError: A size is not an integer or out of its range.

    Example:
        >>> DCGANGenerator(latent_dim=16, channels=3, image_size=28)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(
        self, latent_dim: int = 64, channels: int = 1, image_size: int = 8, width: int = 32, norm: bool = True
    ) -> None:
        super().__init__()
        sizes = pyramid(image_size)
        self.latent_dim = count("latent_dim", latent_dim)
        self.channels, self.image_size = count("channels", channels), image_size
        features, base = count("width", width) * 2 ** (len(sizes) - 1), sizes[-1]
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, features * base * base, bias=not norm),
            nn.Unflatten(1, (features, base, base)),
            *_activated(features, norm),
        ]
        for size in reversed(sizes[:-1]):
            up = nn.ConvTranspose2d(features, features // 2, 4, 2, 1, output_padding=size % 2, bias=not norm)
            features //= 2
            layers += [up, *_activated(features, norm)]
        layers += [nn.Conv2d(features, channels, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialize)

    @override
    def forward(self, latent: Tensor) -> Tensor:
        """Images ``(n, channels, image_size, image_size)`` in [-1, 1] from latents ``(n, latent_dim)``."""
        return self.layers(latent)


class DCGANDiscriminator(nn.Module):
    """Images to logits by strided convolutions and leaky rectifiers (slope 0.2).

    Args:
        channels: Channels of an image.
        image_size: Height and width of an image, 8 to 64.
        width: Channels of the feature maps at full size; they double with each halving of the size.
        norm: Batch normalisation after each strided convolution. Not together with a gradient penalty.
        spectral_norm: Divide each weight by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    Raises:
        ValueError: A size is not an integer or out of its range.

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
    ) -> None:
        super().__init__()
        sizes = pyramid(image_size)
        self.channels, self.image_size = count("channels", channels), image_size
        features, base = count("width", width), sizes[-1]
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, padding=1), nn.LeakyReLU(0.2)]
        for _ in sizes[1:]:
            down = nn.Conv2d(features, 2 * features, 4, 2, 1, bias=not norm)
            features *= 2
            layers += [down, *_activated(features, norm, nn.LeakyReLU(0.2))]
        layers += [nn.Flatten(), nn.Linear(features * base * base, 1), nn.Flatten(0)]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialize)
        if spectral_norm:
            for layer in layers:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    normalize_spectrum(layer)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n,)`` of images ``(n, channels, image_size, image_size)``; above 0 means real."""
        return self.layers(images)


def _activated(features: int, norm: bool, activation: nn.Module | None = None) -> list[nn.Module]:
    activation = nn.ReLU() if activation is None else activation
    return [nn.BatchNorm2d(features), activation] if norm else [activation]


@torch.no_grad()
def _initialize(layer: nn.Module) -> None:
    """Weights from N(0, 0.02^2), as in the paper (section 4); biases at 0, normalisation as it comes."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, INITIAL_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
