"""The Self-Attention GAN, for 32, 64 and 128 pixels.

A residual GAN whose two players see far: self-attention at one size of their feature maps, and spectral normalisation
of every weight in both. At 128 pixels it is the authors' network; they have none for smaller images, so at 64 and 32
pixels the attention is put into the residual GAN of these sizes. Nothing here samples, trains or reads data.

Source: Zhang, Goodfellow, Metaxas & Odena 2019, "Self-Attention Generative Adversarial Networks" (arXiv:1805.08318);
widths and initialisation are those of its code.
"""

from __future__ import annotations

from torch import nn

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.networks.base import ImageDiscriminator, ImageGenerator, one_of
from lightning_decgan.gan.networks.blocks import initialize
from lightning_decgan.gan.networks.conditional import LabelledSequential, ProjectionHead
from lightning_decgan.gan.networks.plans import discriminator_layers, generator_layers
from lightning_decgan.gan.networks.spectral import normalize_spectra

__all__ = ["SAGANDiscriminator", "SAGANGenerator"]

GENERATOR_WIDTHS = {32: 256, 64: 64, 128: 64}
DISCRIMINATOR_WIDTHS = {32: 128, 64: 64, 128: 64}
"""By image size; those of 32 pixels are those of the residual GAN with spectral normalisation on CIFAR-10."""

ATTENTION_SIZES = {32: 16, 64: 32, 128: 32}
"""By image size: 32 is the authors' choice at 128 pixels; a discriminator of 32 pixels has no map as large."""

RESIDUAL_GAIN = 1.0
"""Plain Glorot initialisation, as in the authors' code; spectral normalisation takes the weights' scale away anyhow."""


class SAGANGenerator(ImageGenerator):
    """Latents to images by residual blocks with batch normalisation and self-attention, and a tanh at the end.

    All weights but those of the batch normalisation are spectrally normalised. Full size, for three colours:
    32,226,756 parameters at 128 pixels without classes, 42,072,900 with the 1,000 of ImageNet; at 64 pixels 12,238,276,
    at 32 pixels 4,356,356 without classes.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: Height and width of an image: 32, 64 or 128.
        width: Channels of the feature maps at full size; at 64 and 128 pixels there are twice as many with each halving
            of the size (up to 16 times). None: 256 at 32 pixels, otherwise 64.
        num_classes: Classes of the conditional batch normalisation in the blocks; None: called without labels.
        attention_size: Size of the feature maps with self-attention, one of 8, 16, ... ``image_size``. None: 16 at 32
            pixels, otherwise 32.

    Raises:
        TypeError: A number is not an integer.
        ValueError: ``image_size`` or ``attention_size`` is none of these, or a number is below 1.

    Example:
        >>> import torch
        >>> SAGANGenerator(width=2, num_classes=10)(torch.randn(2, 128), torch.tensor([3, 7])).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        channels: int = 3,
        image_size: int = 32,
        width: int | None = None,
        num_classes: int | None = None,
        attention_size: int | None = None,
    ) -> None:
        one_of("image_size", image_size, tuple(GENERATOR_WIDTHS))
        super().__init__(latent_dim, channels, image_size, num_classes)
        width = GENERATOR_WIDTHS[image_size] if width is None else check_integer("width", width, 1)
        attention_size = ATTENTION_SIZES[image_size] if attention_size is None else attention_size
        self.layers = LabelledSequential(
            *generator_layers(latent_dim, channels, image_size, width, num_classes, attention_size)
        )
        initialize(self, RESIDUAL_GAIN)
        normalize_spectra(self)


class SAGANDiscriminator(ImageDiscriminator):
    """Images to logits by residual blocks with self-attention, a sum over the last map and a projection of the class.

    All weights are spectrally normalised, and samples are treated independently of each other. Full size, for three
    colours: 38,439,618 parameters at 128 pixels without classes, 39,463,618 with the 1,000 of ImageNet; at 64 pixels
    19,547,842, at 32 pixels 1,074,306 without classes.

    Args:
        channels: Channels of an image.
        image_size: Height and width of an image: 32, 64 or 128.
        width: Channels of the first feature maps, and at 32 pixels of all; at 64 and 128 they double with each further
            block (up to 16 times). None: 128 at 32 pixels, otherwise 64.
        num_classes: Classes of the projection; None: called without labels.
        attention_size: Size of the feature maps with self-attention: ``image_size`` halved once or more often, as often
            as the network does. None: 16 at 32 pixels, otherwise 32.

    Raises:
        TypeError: A number is not an integer.
        ValueError: ``image_size`` or ``attention_size`` is none of these, or a number is below 1.

    Example:
        >>> import torch
        >>> SAGANDiscriminator(width=2, num_classes=10)(torch.randn(2, 3, 32, 32), torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        width: int | None = None,
        num_classes: int | None = None,
        attention_size: int | None = None,
    ) -> None:
        one_of("image_size", image_size, tuple(DISCRIMINATOR_WIDTHS))
        super().__init__(channels, image_size, num_classes)
        width = DISCRIMINATOR_WIDTHS[image_size] if width is None else check_integer("width", width, 1)
        attention_size = ATTENTION_SIZES[image_size] if attention_size is None else attention_size
        layers, features = discriminator_layers(
            channels, image_size, width, wide_hidden=True, attention_size=attention_size
        )
        self.layers, self.head = nn.Sequential(*layers), ProjectionHead(features, num_classes)
        initialize(self, RESIDUAL_GAIN)
        normalize_spectra(self)
