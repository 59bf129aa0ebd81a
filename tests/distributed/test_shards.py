"""Real workers train on the shards that are theirs: under any strategy, epoch after epoch, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_decgan.callbacks import ClassHistogram
from lightning_decgan.data import DigitsDataModule
from tests.distributed.models import make_trainer
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes

BATCHES = 1438 // 2 // 100  # an epoch of one of two workers has seven batches of a hundred digits


class Remembers(LightningModule):
    """Writes down the digits it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.pixels: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append(labels.tolist())
        self.pixels.append(float(images.sum()))
        return self.weight * images.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _train(strategy: str, partition: str, batches: int, folder: str, ckpt: str | None) -> dict[str, Any]:
    seed_everything(1)
    module, histogram = Remembers(), ClassHistogram()
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=BATCHES + 4, save_top_k=-1, filename="{step}")
    trainer = make_trainer(
        strategy, 2, max_steps=batches, max_epochs=-1, limit_val_batches=0, enable_checkpointing=True,
        callbacks=[histogram, saver],
    )  # fmt: skip
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=100, partition=partition, alpha=0.3), ckpt_path=ckpt)
    assert histogram.facts is not None
    return {
        "seen": module.seen,
        "pixels": module.pixels,
        "histogram": histogram.facts["class_histogram_per_worker"],
        "sampler": type(trainer.train_dataloader.sampler).__name__,
        "epochs": trainer.current_epoch,
    }


@pytest.mark.parametrize("strategy", ["decentralized_gossip", "ddp"])
def test_each_workers_batches_hold_only_its_classes(tmp_path: Path, strategy: str) -> None:
    found = run_workers(2, _train, strategy, "by_label", 2 * BATCHES, str(tmp_path), None)
    classes = [{label for batch in worker["seen"] for label in batch} for worker in found]
    assert sorted(map(len, classes)) == [5, 5]
    assert classes[0].isdisjoint(classes[1])
    for rank, worker in enumerate(found):
        assert worker["sampler"] == "ShardSampler"
        assert [len(batch) for batch in worker["seen"]] == [100] * (2 * BATCHES)
        assert worker["pixels"][:BATCHES] != worker["pixels"][BATCHES:], "an epoch's order is its own"
        assert worker["histogram"] == found[0]["histogram"]
        assert {label for label, count in enumerate(worker["histogram"][rank]) if count} == classes[rank]


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_in_its_shard(tmp_path: Path) -> None:
    arguments = ("decentralized_gossip", "dirichlet")
    straight = run_workers(2, _train, *arguments, 3 * BATCHES, str(tmp_path / "a"), None)
    checkpoint = str(tmp_path / "a" / f"step={BATCHES + 4}.ckpt")
    resumed = run_workers(2, _train, *arguments, 3 * BATCHES, str(tmp_path / "b"), checkpoint)
    for whole, rest in zip(straight, resumed, strict=True):
        assert len(rest["seen"]) == 2 * BATCHES - 4
        assert rest["seen"] == whole["seen"][BATCHES + 4 :]
        assert rest["pixels"] == whole["pixels"][BATCHES + 4 :]
