"""Not only for GANs: a classifier with automatic optimization, a schedule, torchmetrics and early stopping.

    python examples/03_classifier.py --epochs 8

Every worker trains on its quarter of the digits; the accuracy is that of the average of the four models.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_decgan import DecentralizedGossipStrategy
from lightning_decgan.data import DigitsDataModule


class Classifier(LightningModule):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("accuracy", self.accuracy, prog_bar=True)  # torchmetrics counts over all workers

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--topology", default="exponential")
    parser.add_argument("--folder", type=Path, default=Path("outputs/03_classifier"))
    arguments = parser.parse_args()
    seed_everything(1)
    digits = DigitsDataModule(batch_size=16)
    classifier = Classifier()
    trainer = Trainer(
        strategy=DecentralizedGossipStrategy(topology=arguments.topology),
        accelerator="cpu",
        devices=arguments.workers,
        max_epochs=arguments.epochs,
        callbacks=[EarlyStopping("accuracy", mode="max", patience=5)],
        log_every_n_steps=5,
        default_root_dir=arguments.folder,
    )
    trainer.fit(classifier, datamodule=digits)
    (found,) = trainer.validate(classifier, datamodule=digits, verbose=False)
    trainer.print(f"accuracy of the average of {arguments.workers} workers: {found['accuracy']:.3f}")


if __name__ == "__main__":
    main()
