"""The residual GAN of WGAN-GP and of spectral normalisation, for 32, 48 and 64 pixels.

It is built by the plans of :mod:`lightning_decgan.gan.networks.plans`; what is chosen here is the width, the
discriminator's normalisation and the weights to begin with. Nothing here samples, trains or reads data.

Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv:1704.00028), appendix (32 pixels); Miyato
et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (arXiv:1802.05957), appendix B.4 (32 and 48
pixels), and, for 64 pixels, the code of Miyato & Koyama 2018, "cGANs with Projection Discriminator" (arXiv:1802.05637).
"""

from __future__ import annotations

import math

from torch import nn

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.networks.base import ImageDiscriminator, ImageGenerator, one_of
from lightning_decgan.gan.networks.blocks import initialize
from lightning_decgan.gan.networks.conditional import LabelledSequential, ProjectionHead
from lightning_decgan.gan.networks.plans import discriminator_layers, generator_layers
from lightning_decgan.gan.networks.spectral import normalize_spectra

__all__ = ["ResNetDiscriminator", "ResNetGenerator"]

WIDTHS = {32: 128, 48: 64, 64: 64}
"""The published widths by image size; 128 at 32 pixels is WGAN-GP's."""

NORMS = (None, "layer", "spectral")
POOLINGS = ("sum", "mean")

RESIDUAL_GAIN = math.sqrt(2)
"""Of the residual branches' initial weights, in the code of both papers."""


class ResNetGenerator(ImageGenerator):
    """Latents to images by residual blocks with batch normalisation that repeat pixels, and a tanh at the end.

    At 32 pixels all feature maps have ``width`` channels; at 48 and 64 those at full size do, and there are twice as
    many with each halving of the size (up to 8 and 16 times). Full size, for three colours, without classes: 1,203,331
    parameters at 32 pixels (4,274,435 with the width 256 of spectral normalisation's paper), 4,876,739 at 48 and
    12,217,795 at 64.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: Height and width of an image: 32, 48 or 64.
        width: Channels of the feature maps at full size; None: 128 at 32 pixels, otherwise 64.
        num_classes: Classes of the conditional batch normalisation in the blocks; None: called without labels.

    Raises:
        TypeError: A number is not an integer.
        ValueError: ``image_size`` is none of the three, or a number is below 1.

    Example:
        >>> import torch
        >>> generator = ResNetGenerator(image_size=48, width=2, num_classes=10)
        >>> generator(torch.randn(2, 128), torch.tensor([3, 7])).shape
        torch.Size([2, 3, 48, 48])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        channels: int = 3,
        image_size: int = 32,
        width: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        one_of("image_size", image_size, tuple(WIDTHS))
        super().__init__(latent_dim, channels, image_size, num_classes)
        width = WIDTHS[image_size] if width is None else check_integer("width", width, 1)
        self.layers = LabelledSequential(*generator_layers(latent_dim, channels, image_size, width, num_classes))
        initialize(self, RESIDUAL_GAIN)


class ResNetDiscriminator(ImageDiscriminator):
    """Images to logits by residual blocks that average pixels, a sum over the last map and a linear layer.

    It treats samples independently of each other, with any ``norm``. Full size, for three colours, without classes and
    ``norm``: 1,053,825 parameters at 32 pixels and 10,141,441 at 48 or 64.

    Args:
        channels: Channels of an image.
        image_size: Height and width of an image: 32, 48 or 64.
        width: Channels of the first feature maps, and at 32 pixels of all; at 48 and 64 they double with each further
            block. None: 128 at 32 pixels, otherwise 64.
        norm: None, ``"layer"`` (WGAN-GP's choice where it normalises: over channels and places of a sample, in all
            blocks but the first) or ``"spectral"`` (each weight divided by its largest singular value).
        pooling: ``"sum"`` over the last map's places, as for spectral normalisation, or ``"mean"``, as in WGAN-GP.
        num_classes: Classes of the projection; None: called without labels.

    Raises:
        TypeError: A number is not an integer.
        ValueError: ``image_size``, ``norm`` or ``pooling`` is none of these, or a number is below 1.

    Example:
        >>> import torch
        >>> discriminator = ResNetDiscriminator(image_size=48, width=2, norm="spectral", num_classes=10)
        >>> discriminator(torch.randn(2, 3, 48, 48), torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        width: int | None = None,
        norm: str | None = None,
        pooling: str = "sum",
        num_classes: int | None = None,
    ) -> None:
        one_of("image_size", image_size, tuple(WIDTHS))
        one_of("norm", norm, NORMS)
        one_of("pooling", pooling, POOLINGS)
        super().__init__(channels, image_size, num_classes)
        width = WIDTHS[image_size] if width is None else check_integer("width", width, 1)
        layers, features = discriminator_layers(
            channels, image_size, width, layer_norm=norm == "layer", mean=pooling == "mean"
        )
        self.layers, self.head = nn.Sequential(*layers), ProjectionHead(features, num_classes)
        initialize(self, RESIDUAL_GAIN)
        if norm == "spectral":
            normalize_spectra(self)
