"""LightningModules as users write them, without a thought of this package."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset

NOISE, PIXELS = 4, 16


def real_images(count: int = 256) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, PIXELS, generator=generator).tanh())


class UsersGAN(LightningModule):
    """Two toggled optimizers, BatchNorm, SpectralNorm, WGAN-GP with create_graph, n_critic, an EMA copy, schedulers."""

    def __init__(self, n_critic: int = 1, toggle: bool = True, penalty: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(NOISE, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, PIXELS))
        self.discriminator = nn.Sequential(spectral_norm(nn.Linear(PIXELS, 24)), nn.ReLU(), nn.Linear(24, 1))
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.n_critic, self.toggle, self.with_penalty = n_critic, toggle, penalty

    def forward(self, noise: Tensor) -> Tensor:
        return self.ema(noise)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), NOISE, device=self.device))
        self._switch(opt_d, on=True)
        # Two forwards of the discriminator before one backward.
        d_loss = self.discriminator(fake.detach()).mean() - self.discriminator(real).mean()
        if self.with_penalty:
            d_loss = d_loss + 10.0 * self._penalty(real, fake.detach())
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self._switch(opt_d, on=False)
        if (batch_idx + 1) % self.n_critic == 0:
            self._switch(opt_g, on=True)
            g_loss = -self.discriminator(self.generator(torch.randn(len(real), NOISE, device=self.device))).mean()
            opt_g.zero_grad()
            self.manual_backward(g_loss)
            opt_g.step()
            self._switch(opt_g, on=False)
            with torch.no_grad():
                for slow, fast in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("d_loss", d_loss)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = torch.linspace(-1, 1, NOISE * 8).view(8, NOISE)
        self.log("fake_mean", self(noise).mean(), sync_dist=True)

    def _switch(self, optimizer: Any, on: bool) -> None:
        if self.toggle:
            (self.toggle_optimizer if on else self.untoggle_optimizer)(optimizer)

    def _penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        mix = torch.rand(len(real), 1, device=self.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        return ((gradient.norm(dim=1) - 1) ** 2).mean()

    def configure_optimizers(self) -> Any:
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.0, 0.9))
        return [opt_g, opt_d], [torch.optim.lr_scheduler.StepLR(o, 20, 0.5) for o in (opt_g, opt_d)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(real_images(), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(real_images(32), batch_size=8)


def make_trainer(strategy: Any, devices: int, **arguments: Any) -> Trainer:
    """A quiet Trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(strategy=strategy, devices=devices, **(defaults | arguments))
