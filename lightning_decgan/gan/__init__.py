"""Generative adversarial networks: losses, penalties, the simultaneous step, the LightningModule, networks.

The wing stands on :mod:`lightning_decgan.optim` and knows nothing of workers: it trains under any Lightning strategy.
"""

from lightning_decgan.gan.augment import AUGMENTATIONS, DiffAugment, get_augment
from lightning_decgan.gan.game import Game
from lightning_decgan.gan.losses import (
    LOSSES,
    GANLoss,
    Hinge,
    LeastSquares,
    LossPair,
    NonSaturating,
    RelativisticAverage,
    Wasserstein,
    get_loss,
)
from lightning_decgan.gan.module import DecentralizedGANModule
from lightning_decgan.gan.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
    SAGANDiscriminator,
    SAGANGenerator,
)
from lightning_decgan.gan.penalties import PENALTIES, LazyPenalty, dragan, get_penalty, r1, wgan_gp
from lightning_decgan.gan.step import StepReport, alternating_step, extragradient_step, simultaneous_step

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "PENALTIES",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DecentralizedGANModule",
    "DiffAugment",
    "GANLoss",
    "Game",
    "Hinge",
    "LazyPenalty",
    "LeastSquares",
    "LossPair",
    "NonSaturating",
    "RelativisticAverage",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "SAGANDiscriminator",
    "SAGANGenerator",
    "StepReport",
    "Wasserstein",
    "alternating_step",
    "dragan",
    "extragradient_step",
    "get_augment",
    "get_loss",
    "get_penalty",
    "r1",
    "simultaneous_step",
    "wgan_gp",
]
