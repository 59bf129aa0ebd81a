"""Training batches as the measure of a run: how many there were, where to stop, and one progress bar over all of them.

`trainer.global_step` counts optimizer steps, which is two a batch for a GAN, and epochs have as many batches as the
workers leave them. This module counts batches, as people do who write "20,000 steps". It never talks to other workers:
every worker counts its own batches, and all of them have equally many.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_decgan.checks import check_integer


def training_batches(trainer: Trainer) -> int:
    """The number of batches this worker has trained on, over all epochs and across resumed runs.

    Args:
        trainer: a Trainer that fits, has fitted, or has not begun.

    Returns:
        The number of batches whose training step has been taken; 0 before the first.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> training_batches(Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1))
        0
    """
    # `processed`, as `ready` is one ahead when a batch fails and `completed` one behind in on_train_batch_end
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(total.processed)


class StopAfterBatches(Callback):
    """Ends `fit` after so many training batches, with a last validation, whatever an epoch's length is.

    `Trainer(max_steps=...)` counts optimizer steps, so the same number means half the batches for a GAN and a third
    with two discriminator steps a batch. Give the Trainer `max_epochs=-1` and this callback the number of batches.

    Args:
        steps: batches a worker trains on, counted from the start of training, not from a resume.

    Raises:
        TypeError: if `steps` is no integer.
        ValueError: if it is below 1.

    Example:
        >>> StopAfterBatches(steps=2000).steps
        2000
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = check_integer("steps", steps, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets a run that was resumed at its end do nothing more."""
        if training_batches(trainer) >= self.steps:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks for the stop; Lightning validates once more before it ends the run."""
        if training_batches(trainer) >= self.steps:
            trainer.should_stop = True


class BatchProgressBar(TQDMProgressBar):
    """One bar from the first batch to the last, instead of a new bar for every epoch.

    Small data on several workers make epochs of a dozen batches, and a bar that restarts twice a second tells nothing.
    It shows what every Lightning bar shows (all that is logged with `prog_bar=True`).

    Args:
        steps: batches a worker trains on (as for `StopAfterBatches`).
        refresh_rate: batches between two updates of the bar.
        process_position: lines to leave free above the bar.

    Raises:
        TypeError: if `steps` is no integer.
        ValueError: if it is below 1.

    Example:
        >>> BatchProgressBar(steps=2000, refresh_rate=10).steps
        2000
    """

    def __init__(self, steps: int, refresh_rate: int = 10, process_position: int = 0) -> None:
        super().__init__(refresh_rate=refresh_rate, process_position=process_position)
        self.steps = check_integer("steps", steps, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar, at the batch where a resumed run goes on."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.total = self.steps
        self.train_progress_bar.initial = training_batches(trainer)
        self.train_progress_bar.n = training_batches(trainer)
        self.train_progress_bar.set_description("Training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keeps the bar where it is."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the bar where it is."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar by batches trained, not by the index in the epoch."""
        batches = training_batches(trainer)
        if self._should_update(batches, self.steps):
            bar = self.train_progress_bar
            bar.n = batches
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        """The metrics without Lightning's version number, which says nothing inside one folder a run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
