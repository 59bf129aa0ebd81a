"""The tasks of quality_of_gossip.py, and the callbacks that make exchanges late and note what happened.

They are small enough for two cores: a classifier of digits without batch normalisation, and the digits GAN with
optimistic Adam. The classifier with SGD is the clean comparison: momentum is linear, so the complete graph in the exact
order is DDP, and whatever differs is gossip's doing. With AdamW each worker scales its step by moments of its own,
noisier gradients, which alone makes a difference to DDP, whatever the topology. Nothing here knows which form runs.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_decgan.callbacks import FidelityCallback
from lightning_decgan.data import DigitsDataModule
from lightning_decgan.gan import DecentralizedGANModule
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator
from lightning_decgan.gossip import Exchange
from lightning_decgan.metrics import train_classifier_features

__all__ = ["TASKS", "Metric", "Recorder", "StepClock", "Task", "late_exchanges"]


class Classifier(LightningModule):
    """A convolutional net for 8 x 8 digits, 15,338 parameters, without batch normalisation: no buffers to explain away.

    Args:
        steps: batches of the run, over which the learning rate falls to zero along a cosine.
        optimizer: makes the optimizer.
    """

    def __init__(self, steps: int, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.steps, self.optimizer = steps, optimizer
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 2 * 2, 10),
        )  # fmt: skip

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images)
        right = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({"loss": cross_entropy(logits, labels), "accuracy": right}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Metric:
    """A figure of merit: its key in what a run returns, its heading, and which way is better."""

    key: str
    heading: str
    lower_is_better: bool = True


@dataclass(frozen=True)
class Task:
    """What is trained, and how it is judged.

    Attributes:
        title: of tables and plots.
        metrics: figures of merit, the deciding one first.
        steps: batches of a run by default.
        optimizer_steps: steps of optimizers in a batch, by which Lightning counts.
        module: makes the LightningModule for a run of so many steps.
        data: makes the DataModule.
        callbacks: makes what has to be trained beforehand and measures at validation; called before workers start.
        note: what a reader of the table has to know beside it.
    """

    title: str
    metrics: tuple[Metric, ...]
    steps: int
    optimizer_steps: int
    module: Callable[[int], LightningModule]
    data: Callable[[], DigitsDataModule]
    callbacks: Callable[[], list[Callback]]
    note: str = ""


def _classifier_sgd(steps: int) -> LightningModule:
    return Classifier(steps, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))


def _classifier_adamw(steps: int) -> LightningModule:
    return Classifier(steps, functools.partial(torch.optim.AdamW, lr=3e-3))


def _digits() -> DigitsDataModule:
    return DigitsDataModule(batch_size=16)


def _half_of_digits() -> DigitsDataModule:
    # As many images to judge by as to train on: a loss over a fifth of them would be mostly luck.
    return DigitsDataModule(batch_size=16, validation_fraction=0.5)


def _gan(steps: int) -> LightningModule:
    return DecentralizedGANModule(
        DCGANGenerator(image_size=8, width=16),
        DCGANDiscriminator(image_size=8, width=16),
        generator_lr=2e-3,
        discriminator_lr=2e-3,
        penalty="r1",
        penalty_weight=1.0,
        penalty_every_steps=4,
        ema_decay=0.99,
    )


def _fidelity() -> list[Callback]:
    features = train_classifier_features(_digits())
    # The kernel distance is not looked at: one small subset, because it cannot be turned off.
    return [FidelityCallback(features, samples=2048, kernel_subsets=1, kernel_subset_size=16)]


_CLASSIFIER_METRICS = (Metric("loss", "validation loss"), Metric("accuracy", "accuracy", lower_is_better=False))
TASKS = {
    "classifier": Task(
        title="digits classifier, SGD with momentum, average of all workers",
        metrics=_CLASSIFIER_METRICS,
        steps=320,
        optimizer_steps=1,
        module=_classifier_sgd,
        data=_half_of_digits,
        callbacks=list,
        note="One validation image is 0.0011 of the accuracy.",
    ),
    "classifier_adamw": Task(
        title="digits classifier, AdamW, average of all workers",
        metrics=_CLASSIFIER_METRICS,
        steps=320,
        optimizer_steps=1,
        module=_classifier_adamw,
        data=_half_of_digits,
        callbacks=list,
        note="One validation image is 0.0011 of the accuracy.",
    ),
    "gan": Task(
        title="digits GAN, optimistic Adam, average of all workers",
        metrics=(Metric("fidelity/digits_cnn/frechet_distance", "Frechet distance"),),
        steps=600,
        optimizer_steps=2,
        module=_gan,
        data=_digits,
        callbacks=_fidelity,
        note="The Frechet distance is that of the averaged generator, on features of a classifier of digits. DDP is"
        " CP-OAdam: gradients of both players averaged before either steps.",
    ),
}


class Recorder(Callback):
    """Gives every worker random numbers of its own, the same in every form, and notes what a run shows.

    Attributes:
        history: at every validation `{"step", metric: value, ..., "distance", "neighbors"}`. The distance to consensus
            is relative to the norm of the average, 0 for a strategy that keeps all workers equal. How far this worker's
            neighbours were from it when they swapped, in the mean since the last validation, is relative to its norm:
            it tells of the training in between, after which late workers go on gossiping until all have come.
        late_steps: of every finished gossip, how many steps later than due it was added.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.history: list[dict[str, float]] = []
        self.late_steps: list[int] = []
        self._neighbors: list[float] = []
        self._step = 0
        self._last: Any = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # DDP by itself would draw the same latents on every worker, and strategies draw unlike each other beforehand.
        torch.manual_seed((self.seed * trainer.world_size + trainer.global_rank) * 1_000_000 + self._step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._step += 1
        report = getattr(trainer.strategy, "last_report", None)
        if report is not None and report is not self._last:
            self._last = report
            self.late_steps.append(report.late_steps)
            if report.neighbor_distance is not None:
                norm = torch.nn.utils.get_total_norm(list(pl_module.parameters()))
                self._neighbors.append(report.neighbor_distance / float(norm))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        entry = {metric.key: float(trainer.callback_metrics[metric.key]) for metric in self.task.metrics}
        distance = getattr(trainer.strategy, "relative_consensus_distance", None)
        neighbors = statistics.mean(self._neighbors) if self._neighbors else 0.0
        self._neighbors.clear()
        self.history.append({"step": self._step, **entry, "distance": distance or 0.0, "neighbors": neighbors})


class StepClock(Callback):
    """Tells exchanges how far their worker's training has come, so that they can be late by steps and not by luck.

    During the evaluations and after the end nobody is kept waiting: the strategy waits there for what is in flight.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batch, self._waits = 0, True

    def wait_for_batch(self, batch: int, timeout_seconds: float = 30.0) -> None:
        """Block until so many batches have begun, or an evaluation has."""
        with self._changed:
            self._changed.wait_for(lambda: self._batch >= batch or not self._waits, timeout_seconds)

    def _set(self, batch: int | None = None, waits: bool | None = None) -> None:
        with self._changed:
            self._batch = self._batch if batch is None else batch
            self._waits = self._waits if waits is None else waits
            self._changed.notify_all()

    def on_train_batch_start(self, *_: Any) -> None:
        self._set(batch=self._batch + 1)

    def on_validation_start(self, *_: Any) -> None:
        self._set(waits=False)

    def on_validation_end(self, *_: Any) -> None:
        self._set(waits=True)

    def on_train_end(self, *_: Any) -> None:
        self._set(waits=False)

    def on_exception(self, *_: Any) -> None:
        self._set(waits=False)


@contextmanager
def late_exchanges(clock: StepClock, steps: int, seconds: float | None = None) -> Iterator[None]:
    """Every exchange of this process ends as late as on a slow network, while the block runs.

    Args:
        clock: a callback of the Trainer.
        steps: how many steps late; 0 is in time, behind the next batch.
        seconds: if given, an exchange takes at least this long instead.
    """
    original = Exchange.run

    def run(exchange: Exchange, step: int, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        report = original(exchange, step, *args, **kwargs)
        if seconds is not None:
            time.sleep(max(0.0, started + seconds - time.monotonic()))
        elif steps:
            # A snapshot taken after batch k is in time at the end of batch k + 1.
            clock.wait_for_batch(step + 1 + steps)
        return report

    Exchange.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        Exchange.run = original  # type: ignore[method-assign]
