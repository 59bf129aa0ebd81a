"""How close generated images are to real ones, measured at every validation of anybody's Trainer.

The validation batches are the real images, `pl_module.sample` gives the generated ones, each worker a share of both;
the distances are computed over all of them through `lightning_decgan.metrics.Fidelity`. Validation is a moment at which
all workers meet, so collectives are allowed here; nothing happens between training batches. The scores are named for
the network whose features they compare, and are never called FID.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_decgan.callbacks.batches import training_batches
from lightning_decgan.callbacks.sample_grid import Sampler, check_sampler, draw, undisturbed
from lightning_decgan.checks import check_integer
from lightning_decgan.metrics import Fidelity


def images_of(batch: Any) -> Tensor:
    """The images of a batch: the batch itself, its first element, or its entry `"image"` or `"images"`.

    Args:
        batch: a tensor, a tuple or list, or a dictionary.

    Returns:
        (n, C, H, W).

    Raises:
        TypeError: if no tensor is found there.

    Example:
        >>> images_of((torch.zeros(2, 1, 8, 8), torch.tensor([3, 4]))).shape
        torch.Size([2, 1, 8, 8])
    """
    found = batch
    if isinstance(batch, list | tuple) and batch:
        found = batch[0]
    elif isinstance(batch, dict):
        found = batch.get("images", batch.get("image"))
    if not isinstance(found, Tensor):
        raise TypeError(
            "a batch must be a tensor of images, a tuple or list that begins with one, or a dictionary with 'image' or "
            f"'images', found {type(batch).__name__}"
        )
    return found


class FidelityCallback(Callback):
    """Logs distances between generated and real images under `fidelity/<features>/...` at every validation.

    For callbacks that watch a score, such as `ModelCheckpoint(monitor="frechet_distance")` and
    `EarlyStopping(monitor="frechet_distance")`, it goes by its short name as well, which no logger writes.

    Under a decentralized strategy that validates on the consensus, it is the consensus that is scored. Lightning's
    sanity check scores the untrained model, provided that it sees the whole validation set
    (`Trainer(num_sanity_val_steps=-1)`): scores on different sets of real images would not compare.

    Args:
        features: a network `images in [-1, 1] -> (n, num_features)`, such as
            `lightning_decgan.metrics.train_classifier_features` returns. Train it before the Trainer starts its
            workers: it travels to them with the Trainer.
        samples: images generated for a score, over all workers together.
        batch_size: images generated at a time.
        seed: of the latent points; the same points every time, different ones on every worker.
        sample: `sample(pl_module, n) -> (n, C, H, W)` with values in [-1, 1]; default: `pl_module.sample(n)`.
        images: takes the real images out of a validation batch; default: `images_of`.
        **fidelity: settings of `Fidelity`, for example `kernel_subset_size`. With `reset_real_features=False` the real
            images of the first measurement stand for all later ones, whose validation is then as much faster.

    Attributes:
        scores_before: the first scores measured: of the untrained model when Lightning's sanity check ran.
        scores: the last scores measured.
        history: one `{"step": batches, "frechet_distance": ..., ...}` a measurement; it survives a resume.

    Raises:
        TypeError: if `features` is no module, a number no integer, or training starts with a module that has no
            `sample`.
        ValueError: if a number is out of its range, or training starts with fewer validation images than a score
            needs.

    Example:
        >>> from lightning_decgan.data import DigitsDataModule
        >>> from lightning_decgan.metrics import train_classifier_features
        >>> features = train_classifier_features(DigitsDataModule(), epochs=1)
        >>> callback = FidelityCallback(features, samples=512)
        >>> callback.features_name
        'digits_cnn'
    """

    def __init__(
        self,
        features: nn.Module,
        samples: int = 1024,
        batch_size: int = 256,
        seed: int = 0,
        sample: Sampler | None = None,
        images: Callable[[Any], Tensor] = images_of,
        **fidelity: Any,
    ) -> None:
        super().__init__()
        if not isinstance(features, nn.Module):
            raise TypeError(f"features must be a torch.nn.Module that maps images to features, found {features!r}")
        self.samples = check_integer("samples", samples, 2)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.seed = check_integer("seed", seed, 0)
        self.sample = sample
        self.images = images
        self.fidelity = Fidelity(features, **fidelity)
        if self.samples < self.fidelity.settings.kernel_subset_size:
            raise ValueError(
                f"samples must be at least kernel_subset_size={self.fidelity.settings.kernel_subset_size}, "
                f"found {self.samples}: draw more, or score smaller subsets"
            )
        self.history: list[dict[str, float]] = []
        self._knows_real = False
        self._real_of_workers: int | None = None

    @property
    def features_name(self) -> str:
        """The feature network's name, which every score is called after."""
        return self.fidelity.features_name

    @property
    def scores_before(self) -> dict[str, float] | None:
        """The first scores measured, None before there are any."""
        return _scores(self.history[0]) if self.history else None

    @property
    def scores(self) -> dict[str, float] | None:
        """The last scores measured, None before there are any."""
        return _scores(self.history[-1]) if self.history else None

    def state_dict(self) -> dict[str, Any]:
        """The history, so that a resumed run still knows where it began."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history back."""
        self.history = [dict(entry) for entry in state_dict["history"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is something to draw from."""
        check_sampler("FidelityCallback", pl_module, self.sample)

    def check_real_images(self, count: int) -> None:
        """Refuses fewer validation images than the scores need: asked before training, which would be lost otherwise.

        Args:
            count: of all workers together.

        Raises:
            ValueError: if they are too few.
        """
        needed = self.fidelity.settings.kernel_subset_size
        if count < needed:
            raise ValueError(
                f"kernel_subset_size={needed} needs at least that many validation images, found {count}; "
                f"valid would be kernel_subset_size={count} or less, or more images held back for validation"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the validation images, where their loader tells: the first validation may be hours away."""
        loaders = tree_leaves(trainer.val_dataloaders)
        images = getattr(loaders[0], "dataset", None) if loaders and not self._knows_real else None
        if isinstance(images, Sized):
            self.check_real_images(len(images))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last measurement's images; the real ones too where they are dealt out to others than then."""
        self.fidelity.to(pl_module.device)
        self.fidelity.reset()
        workers = _dealt_among(trainer)
        if self._knows_real and workers != self._real_of_workers:
            self.fidelity.real_features, self._knows_real = [], False
        self._real_of_workers = workers

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes this worker's real images; of several validation loaders the first counts."""
        if dataloader_idx == 0 and not self._knows_real and not self._passes_over(trainer):
            self.fidelity.update(self.images(batch).to(pl_module.device), real=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws this worker's share, computes over all workers, and logs."""
        if self._passes_over(trainer):
            return
        each, rest = divmod(self.samples, trainer.world_size)
        share = each + (trainer.global_rank < rest)
        mine = trainer.global_rank * each + min(trainer.global_rank, rest)  # my first of all workers' images
        with undisturbed(pl_module, self.seed * trainer.world_size + trainer.global_rank, pl_module.device):
            for first in range(0, share, self.batch_size):
                count = min(self.batch_size, share - first)
                self.fidelity.update(draw(pl_module, count, self.sample, mine + first), real=False)
        # The scores' collectives are torchmetrics' own: who was lost while validating must not be waited for in them.
        trainer.strategy.barrier("FidelityCallback: everybody has drawn")
        scores = {name: float(value) for name, value in self.fidelity.compute().items()}
        self.fidelity.reset()
        self._knows_real = not self.fidelity.reset_real_features
        self.history.append({"step": training_batches(trainer), **scores})
        # equal on every worker already; sync_dist says so to Lightning, at a moment when all workers meet anyway
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1, "sync_dist": True}
        for name, value in scores.items():
            score = torch.tensor(value, device=pl_module.device, dtype=torch.float32)
            shown = name == "frechet_distance"
            pl_module.log(f"fidelity/{self.features_name}/{name}", score, prog_bar=shown, **how)
            pl_module.log(name, score, logger=False, **how)

    def _passes_over(self, trainer: Trainer) -> bool:
        """Whether this is a sanity check on a part of the images, or one of a resumed run, which has its scores."""
        if not trainer.sanity_checking:
            return False
        return trainer.num_sanity_val_batches != trainer.num_val_batches or bool(self.history)


def _dealt_among(trainer: Trainer) -> int:
    """How many workers share the validation images of this validation: fewer once some are lost."""
    loaders = tree_leaves(trainer.val_dataloaders)
    sampler = getattr(loaders[0], "sampler", None) if loaders else None
    return int(getattr(sampler, "num_replicas", trainer.world_size))


def _scores(entry: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if name != "step"}
