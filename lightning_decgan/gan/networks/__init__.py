"""Networks to start with; any ``torch.nn.Module`` will do instead."""

from lightning_decgan.gan.networks.attention import SelfAttention
from lightning_decgan.gan.networks.base import ImageDiscriminator, ImageGenerator
from lightning_decgan.gan.networks.conditional import ConditionalBatchNorm2d, LabelledSequential, ProjectionHead
from lightning_decgan.gan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_decgan.gan.networks.resnet import ResNetDiscriminator, ResNetGenerator
from lightning_decgan.gan.networks.sagan import SAGANDiscriminator, SAGANGenerator
from lightning_decgan.gan.networks.spectral import SpectralNorm, normalize_spectra

__all__ = [
    "ConditionalBatchNorm2d",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "ImageDiscriminator",
    "ImageGenerator",
    "LabelledSequential",
    "ProjectionHead",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "SAGANDiscriminator",
    "SAGANGenerator",
    "SelfAttention",
    "SpectralNorm",
    "normalize_spectra",
]
