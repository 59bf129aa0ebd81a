"""Random numbers that differ from worker to worker, under strategies that leave all workers the same ones."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_decgan.strategy import DecentralizedGossipStrategy
from lightning_decgan.strategy.start import draw_own_random_numbers


class OwnRandomNumbers(Callback):
    """Gives each worker random numbers of its own when training starts.

    After `seed_everything`, DDP leaves all workers with the same ones: N workers then draw the same latents, and where
    the generator is the same, as it is under DDP, the same N batches of generated images. Worker i > 0 gets a seed made
    of the common one and i; worker 0 keeps its numbers. Gossip strategies do this by themselves and are left alone.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(strategy="ddp", accelerator="cpu", devices=2, callbacks=[OwnRandomNumbers()])
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds `random`, NumPy and torch anew on all workers but the first."""
        if not isinstance(trainer.strategy, DecentralizedGossipStrategy):
            draw_own_random_numbers(trainer.global_rank)
