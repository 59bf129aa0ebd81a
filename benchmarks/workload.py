"""The model, data and step clock that the benchmarks share.

Two loads: `cpu` computes real convolutions, and all workers share the cores with the exchange; `accelerator` leaves the
processor idle for 100 ms a step and makes cheap gradients, as when a GPU computes. Either comes as a LightningModule
and as a plain `nn.Module` whose forward is the objective of a whole step, for loops without Lightning.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from lightning_decgan import DecentralizedGANModule, OptimisticAdam
from lightning_decgan.gan.losses import get_loss
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator

__all__ = ["LOADS", "GanObjective", "Idle", "IdleObjective", "Images", "StepTimes", "make_module", "make_objective"]

LOADS = ("accelerator", "cpu")
IDLE_SECONDS = 0.1
LATENT_SIZE = 64


class Images(Dataset[Tensor]):
    """As many random colour images of 32 x 32 as one asks for, made from a few, so that loading them costs nothing."""

    def __init__(self, length: int) -> None:
        self._pool = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        return self._pool[index % len(self._pool)]


class IdleObjective(nn.Module):
    """Both players' parameters, a sleep, and an objective whose gradient costs next to nothing.

    The gradient goes through autograd, so that hooks that wait for it (those of DistributedDataParallel) fire.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, seconds: float = IDLE_SECONDS) -> None:
        super().__init__()
        self.players, self.seconds = nn.ModuleList([generator, discriminator]), seconds

    def forward(self, images: Tensor) -> Tensor:
        """The sum of all parameters, after the sleep."""
        time.sleep(self.seconds)
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """SGD that hardly moves."""
        return torch.optim.SGD(parameters, lr=1e-6)


class GanObjective(nn.Module):
    """The simultaneous step of a GAN as one scalar: its gradient is each player's own, both taken at one point.

    Both losses are formed in one forward and one backward, as `DecentralizedGANModule` does it, so that wrappers that
    expect one forward and one backward a step (DistributedDataParallel, decent-dp) train both players.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.players, self._loss = nn.ModuleList([generator, discriminator]), get_loss("non_saturating")

    def forward(self, images: Tensor) -> Tensor:
        """The discriminator's loss, and a term that has the generator's gradient."""
        generator, discriminator = self.players
        fake = generator(torch.randn(len(images), LATENT_SIZE))
        cut = fake.detach().requires_grad_()  # the discriminator's loss must not move the generator
        real_logits, fake_logits = discriminator(images), discriminator(cut)
        (slope,) = torch.autograd.grad(self._loss.generator(fake_logits), cut, retain_graph=True)
        return self._loss.discriminator(real_logits, fake_logits) + (fake * slope).sum()

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer and settings that `DecentralizedGANModule` takes by default."""
        return OptimisticAdam(parameters, lr=2e-4, betas=(0.5, 0.9))


class Idle(LightningModule):
    """`IdleObjective` for a Trainer."""

    def __init__(self, objective: IdleObjective) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.objective(batch))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        return [self.objective.make_optimizer(player.parameters()) for player in self.objective.players]


class StepTimes(Callback):
    """Seconds from one batch's end to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def make_objective(load: str, width: int) -> IdleObjective | GanObjective:
    """A DCGAN for 32 x 32 colour images; width 42 makes 11 MB of parameters for the two players together."""
    generator = DCGANGenerator(latent_dim=LATENT_SIZE, channels=3, image_size=32, width=width)
    discriminator = DCGANDiscriminator(channels=3, image_size=32, width=width)
    return IdleObjective(generator, discriminator) if load == "accelerator" else GanObjective(generator, discriminator)


def make_module(load: str, width: int) -> LightningModule:
    """The same model for a Trainer."""
    objective = make_objective(load, width)
    if isinstance(objective, IdleObjective):
        return Idle(objective)
    # The rivals' plain loops take the discriminator over real and generated images apart; so does this one.
    return DecentralizedGANModule(*objective.players, ema_decay=None, joint=False)
