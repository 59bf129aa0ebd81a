"""Every recipe of conf/experiment: its networks, in the size that it names, take two steps on a few images."""

import logging

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan.cli.build import make
from lightning_decgan.cli.config import compose, options

# Where the data of a recipe are is for the user to say; the networks do not depend on it.
NEEDED = {"cifar10_wgan_gp": ["data.root=/nowhere"], "imagenet_sagan": ["data.root=/nowhere"]}


@pytest.mark.parametrize("name", options("experiment"))
def test_a_recipe_takes_two_steps(name, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    seed_everything(0, verbose=False)
    config = compose([f"experiment={name}", *NEEDED.get(name, [])])
    gan = make(config, "model")
    classes = config.num_classes or 1
    size = 1 if config.image_size > 64 else 2  # a minute of two cores is saved
    images = torch.rand(2 * size, config.channels, config.image_size, config.image_size) * 2 - 1
    data = DataLoader(TensorDataset(images, torch.arange(2 * size) % classes), batch_size=size)
    before = [parameter.detach().clone() for parameter in gan.parameters()]
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(gan, data)
    assert gan.batches_seen == 2
    moved = sum(not torch.equal(old, new) for old, new in zip(before, gan.parameters(), strict=True))
    assert moved > 0.9 * len(before) / 2
    assert gan.sample(2, seed=0).shape == (2, *images.shape[1:])
