"""A GAN from nothing, trained decentralized: four workers on a ring learn to draw digits.

python examples/02_decentralized_gan.py --epochs 60
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_decgan import DecentralizedGANModule, DecentralizedGossipStrategy
from lightning_decgan.callbacks import GossipMonitor, SampleGrid
from lightning_decgan.data import DigitsDataModule
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("outputs/02_decentralized_gan"))
    arguments = parser.parse_args()
    seed_everything(1)
    gan = DecentralizedGANModule(
        DCGANGenerator(image_size=8), DCGANDiscriminator(image_size=8), penalty="r1", penalty_weight=1.0,
        generator_lr=5e-4, discriminator_lr=5e-4, ema_decay=0.99,
    )  # fmt: skip
    trainer = Trainer(
        strategy=DecentralizedGossipStrategy(topology="ring"), accelerator="cpu", devices=arguments.workers,
        max_epochs=arguments.epochs, check_val_every_n_epoch=arguments.epochs, log_every_n_steps=5,
        callbacks=[SampleGrid(dirpath=arguments.folder / "samples"), GossipMonitor(every_n_steps=5)],
        default_root_dir=arguments.folder,
    )  # fmt: skip
    trainer.fit(gan, datamodule=DigitsDataModule(batch_size=32))
    trainer.print(f"samples of the average of all workers: {arguments.folder / 'samples'}")


if __name__ == "__main__":
    main()
