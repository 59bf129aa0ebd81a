"""One worker's program on one of two machines; torchrun starts it (examples/04_two_nodes.sh shows how).

The only things that differ from one machine: `num_nodes=2`, and a deadline that fits the network between the two.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_decgan import DecentralizedGANModule, DecentralizedGossipStrategy
from lightning_decgan.callbacks import SampleGrid
from lightning_decgan.data import DigitsDataModule
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("outputs/04_two_nodes"))
    arguments = parser.parse_args()
    if "LOCAL_WORLD_SIZE" not in os.environ:
        parser.error("torchrun has to start this program, which sets LOCAL_WORLD_SIZE; see examples/04_two_nodes.sh")
    seed_everything(1)
    gan = DecentralizedGANModule(
        DCGANGenerator(image_size=8, width=16), DCGANDiscriminator(image_size=8, width=16), penalty="r1",
        penalty_weight=1.0, generator_lr=1e-3, discriminator_lr=1e-3, ema_decay=0.99,
    )  # fmt: skip
    trainer = Trainer(
        strategy=DecentralizedGossipStrategy(topology="ring", timeout=timedelta(seconds=60)),
        accelerator="cpu",
        num_nodes=2,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),  # what torchrun was told: --nproc-per-node
        max_epochs=arguments.epochs,
        check_val_every_n_epoch=arguments.epochs,
        log_every_n_steps=5,
        default_root_dir=arguments.folder,
        callbacks=[SampleGrid(dirpath=arguments.folder / "samples")],
    )
    trainer.fit(gan, datamodule=DigitsDataModule(batch_size=32))
    print(f"node {trainer.node_rank}, worker {trainer.global_rank} of {trainer.world_size}: done", flush=True)


if __name__ == "__main__":
    main()
