"""Checkpoints of `decgan train` in miniature, for the commands that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightning_decgan.cli.build import make
from lightning_decgan.cli.checkpoint import EmbedConfig, embedded_config
from lightning_decgan.cli.config import compose
from lightning_decgan.strategy.checkpoint import MANIFEST_KEY, write_shards


def tiny_checkpoint(folder: Path, *overrides: str) -> Path:
    """A GAN of a few thousand weights for digits, trained for two batches in this process: `gan.ckpt`."""
    small = ["image_size=8", "batch_size=16", "++model.generator.width=4", "++model.discriminator.width=4"]
    config = compose([*small, *overrides], run_dir=folder)
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[EmbedConfig(embedded_config(config))],
    )
    trainer.fit(make(config, "model"), make(config, "data"))
    trainer.save_checkpoint(folder / "gan.ckpt")
    return folder / "gan.ckpt"


def with_shards(checkpoint: Path, path: Path, scales: list[float], workers: Sequence[int] | None = None) -> Path:
    """The same checkpoint as a decentralized run saves it: the weights of a worker are the consensus times its scale.

    The workers are 0, 1, 2 and so on, unless some were lost.
    """
    content = torch.load(checkpoint, weights_only=True)
    shards = []
    for worker, scale in zip(workers or range(len(scales)), scales, strict=True):
        own = {
            name: value * scale if value.is_floating_point() else value for name, value in content["state_dict"].items()
        }
        shard = {"worker": worker, "checkpoint": {"state_dict": own}}
        manifest = write_shards(path, worker, lambda shard=shard: shard, content["state_dict"])
        shards += manifest["shards"]
    content[MANIFEST_KEY] = {**manifest, "workers": len(scales), "shards": shards}
    torch.save(content, path)
    return path
