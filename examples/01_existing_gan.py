"""A GAN as many people have one: two optimizers, toggled, manual optimization. One line makes it decentralized.

    python examples/01_existing_gan.py --epochs 40

Nothing of lightning_decgan is imported: that it is installed is enough for its strategy to be known by name.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torch.utils.data import DataLoader, TensorDataset

NOISE = 32


class GAN(LightningModule):
    """Two small networks on 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(NOISE, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(128, 1),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def judge(self, images: Tensor, real: float) -> Tensor:
        logits = self.discriminator(images)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        (images,) = batch
        opt_g, opt_d = self.optimizers()
        noise = torch.randn(len(images), NOISE, device=self.device)

        self.toggle_optimizer(opt_d)
        d_loss = self.judge(images, 0.9) + self.judge(self(noise).detach(), 0.0)
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.untoggle_optimizer(opt_d)

        self.toggle_optimizer(opt_g)
        g_loss = self.judge(self(noise), 1.0)
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.untoggle_optimizer(opt_g)
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        players = (self.generator, self.discriminator)
        return [torch.optim.Adam(player.parameters(), lr=1e-3, betas=(0.5, 0.999)) for player in players]

    def train_dataloader(self) -> DataLoader:
        images = torch.from_numpy(load_digits().data).float() / 8 - 1
        return DataLoader(TensorDataset(images), batch_size=32, shuffle=True, drop_last=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("outputs/01_existing_gan"))
    arguments = parser.parse_args()
    seed_everything(1)
    gan = GAN()
    trainer = Trainer(
        accelerator="cpu",
        devices=arguments.workers,
        strategy="decentralized_gossip",  # the only line that changes: it said "ddp"
        max_epochs=arguments.epochs,
        log_every_n_steps=5,
        default_root_dir=arguments.folder,
    )
    trainer.fit(gan)
    if trainer.is_global_zero:
        with torch.no_grad():
            digits = pad(gan.eval()(torch.randn(64, NOISE)).view(64, 8, 8), (1, 1, 1, 1))
        grid = digits.view(8, 8, 10, 10).permute(0, 2, 1, 3).reshape(80, 80)  # 8 rows of 8 digits
        arguments.folder.mkdir(parents=True, exist_ok=True)
        picture = arguments.folder / "digits.png"
        Image.fromarray(((grid + 1) * 127.5).byte().numpy()).resize((640, 640), Image.Resampling.NEAREST).save(picture)
        print(f"drawn by the average of {arguments.workers} workers: {picture}")


if __name__ == "__main__":
    main()
