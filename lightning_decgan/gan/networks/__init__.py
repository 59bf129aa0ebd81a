"""Networks to start with; any ``torch.nn.Module`` will do instead."""

from lightning_decgan.gan.networks.dcgan import DCGANDiscriminator, DCGANGenerator

__all__ = ["DCGANDiscriminator", "DCGANGenerator"]
