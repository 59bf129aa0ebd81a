"""Generative adversarial networks: losses, penalties, the simultaneous step, the LightningModule, networks.

The wing stands on :mod:`lightning_decgan.optim` and knows nothing of workers: it trains under any Lightning strategy.
"""

from lightning_decgan.gan.losses import (
    LOSSES,
    GANLoss,
    Hinge,
    LeastSquares,
    LossPair,
    NonSaturating,
    Wasserstein,
    get_loss,
)
from lightning_decgan.gan.module import DecentralizedGANModule
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator
from lightning_decgan.gan.penalties import PENALTIES, get_penalty, r1, wgan_gp
from lightning_decgan.gan.step import StepReport, alternating_step, simultaneous_step

__all__ = [
    "LOSSES",
    "PENALTIES",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DecentralizedGANModule",
    "GANLoss",
    "Hinge",
    "LeastSquares",
    "LossPair",
    "NonSaturating",
    "StepReport",
    "Wasserstein",
    "alternating_step",
    "get_loss",
    "get_penalty",
    "r1",
    "simultaneous_step",
    "wgan_gp",
]
