"""One small LightningModule for each habit of users that a strategy could stumble over."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

INPUTS, OUTPUTS, BATCH = 4, 3, 4


def pairs(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(*(torch.randn(count, size, generator=generator) for size in (INPUTS, OUTPUTS)))


class Regression(LightningModule):
    """Automatic optimization, one optimizer: the module of every tutorial. 6 batches of each of 2 workers."""

    batches = 6

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(pairs(2 * BATCH * self.batches), batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(pairs(16), batch_size=BATCH)


class SevenBatches(Regression):
    batches = 7


class WithLBFGS(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.closures = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.closures += 1
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


class ThreeOptimizers(Regression):
    """Manual optimization; three optimizers step in every batch, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, OUTPUTS))
        self.scale = nn.Parameter(torch.ones(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizers = self.optimizers()
        for optimizer in (*optimizers, optimizers[0]):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        held = (self.net[0].parameters(), self.net[2].parameters(), [self.scale])
        return [torch.optim.Adam(parameters, lr=0.01) for parameters in held]


class AccumulatesItself(Regression):
    """Manual optimization that steps on every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class FrozenBackbone(Regression):
    """The optimizer holds the head only."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(INPUTS, 50).requires_grad_(False)
        self.net = nn.Linear(50, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.backbone(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Tied(Regression):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(INPUTS, INPUTS)
        self.again = nn.Linear(INPUTS, INPUTS)
        self.again.weight = self.net.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.net(x))[:, :OUTPUTS]


class Unused(Regression):
    """A parameter that the optimizer holds and no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.randn(7))


class ThreeDtypes(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Linear(INPUTS, OUTPUTS)
        self.net = nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
        self.coarse = nn.Parameter(torch.ones(OUTPUTS, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x.double()) + self.single(x)).float() + self.coarse.float()


class Unfreeze(BaseFinetuning):
    """The backbone joins after two epochs."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)
        elif epoch > 2:
            self.make_trainable(pl_module.backbone)  # a resumed run begins with it frozen


class BatchNorm(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Linear(5, OUTPUTS))


class OldSpectralNorm(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(INPUTS, 5)), nn.Linear(5, OUTPUTS))


class Parametrized(Regression):
    def __init__(self) -> None:
        super().__init__()
        normed = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(INPUTS, 5))
        self.net = nn.Sequential(normed, torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, OUTPUTS)))


class Schedules(Regression):
    """A schedule per step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EpochSchedule(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


class Plateau(Regression):
    """A schedule on a metric of each worker's own: it improves on worker 0 and stays on worker 1."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mine", torch.tensor(float(-self.current_epoch if self.global_rank == 0 else 1)))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "mine"}}


class SometimesIdle(Regression):
    """Manual optimization; worker 1 finds nothing to learn in half of its batches and steps no optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_rank == 1 and batch_idx % 2:
            return
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class SometimesNone(Regression):
    """Automatic optimization; worker 1 returns None, which Lightning refuses wherever there are several workers."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if self.global_rank == 1 and batch_idx == 1 else self.loss(batch)


def compiled() -> Any:
    return torch.compile(Regression(), backend="eager")


def stop_early() -> EarlyStopping:
    """Of patience 1 on `Plateau`'s metric: worker 1 wants to stop after the second epoch, worker 0 never."""
    return EarlyStopping("mine", patience=1)


def own_module(trainer: Trainer) -> LightningModule:
    """The module without what torch.compile puts round it."""
    assert trainer.lightning_module is not None
    return trainer.lightning_module
