"""What the DataModules of images have in common: the split, each worker's shard, and the loaders.

A subclass says which images there are; this module splits them by a seed, deals them out to the workers, and hands out
loaders. It never downloads, never augments, and never touches the global random number generator: the split and the
deal are this module's, the order of training batches follows the run's seed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from lightning_decgan.checks import check_integer
from lightning_decgan.data.images import LabelledImages, labels_of
from lightning_decgan.data.partition import Partition, check_partition, class_histogram, make_shards
from lightning_decgan.data.shard_sampler import ShardSampler

MINIMUM_IMAGE_SIZE = 8


class ImageDataModule(LightningDataModule, ABC):
    """A LightningDataModule whose batches are ``(images, labels)``: NCHW ``float32`` in [-1, 1], and ``int64``.

    A subclass sets ``name``, ``channels``, ``num_classes`` and ``class_names`` and defines :meth:`load`. The images are
    then split once, by ``seed``, into training and validation; the same seed gives the same split on every worker and
    machine. What a worker trains on is said by ``partition``:

    - ``"iid"``: the loader is plain (``shuffle=True``), Lightning puts its ``DistributedSampler`` into it, and each
      epoch all images are dealt out anew.
    - ``"by_label"``: each worker has a part of the classes, for good
      (:func:`~lightning_decgan.data.partition.shards_by_label`).
    - ``"dirichlet"``: each worker has, for good, a share of each class drawn from Dir(``alpha``)
      (:func:`~lightning_decgan.data.partition.dirichlet_shards`).

    For the last two the loader brings a :class:`~lightning_decgan.data.shard_sampler.ShardSampler`, which Lightning
    leaves in its place under any strategy. All three give every worker the same number of batches an epoch, that of
    ``"iid"``: neighbours wait for each other, so smaller shards are repeated and larger ones take several epochs.
    Validation and test images are never partitioned. ``Trainer(overfit_batches=...)`` replaces every sampler, and the
    partition with it.

    Attributes:
        name: What the data is, lower snake case; it names cached feature networks and tables.
        channels: 1 or 3.
        image_size: The side of the square images, in pixels.
        num_classes: How many classes the labels tell apart, ``None`` when there are no labels (they are then all 0).
        class_names: One name a class, ``None`` when there are no labels.

    Args:
        batch_size: Images in a batch *of one worker*: N workers together see ``N * batch_size`` images a step.
        image_size: The side of the square images, in pixels.
        validation_fraction: The share of images kept for validation, strictly between 0 and 1.
        num_workers: Loader processes of each worker; 0 loads in the training process.
        seed: Of the split and, without a ``partition_seed``, of the partition.
        maximum_image_size: The largest ``image_size`` that the subclass allows.
        partition: ``"iid"``, ``"by_label"`` or ``"dirichlet"``.
        alpha: The concentration of ``"dirichlet"``, from 1e-6 (workers differ as much as they can) to 1e6 (all alike).
        partition_seed: Of the partition alone, so that it can change while the split stays; ``None``: ``seed``.

    Raises:
        TypeError: If an integer argument is not an integer, or ``alpha`` is not a number.
        ValueError: If an argument is out of range, or ``partition`` needs labels that the images have not.
    """

    name: str
    channels: int
    num_classes: int | None
    class_names: tuple[str, ...] | None

    def __init__(
        self,
        batch_size: int,
        image_size: int,
        validation_fraction: float,
        num_workers: int,
        seed: int,
        *,
        maximum_image_size: int,
        partition: Partition = "iid",
        alpha: float = 0.5,
        partition_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.image_size = check_integer("image_size", image_size, MINIMUM_IMAGE_SIZE, maximum_image_size)
        self.num_workers = check_integer("num_workers", num_workers, 0)
        self.seed = check_integer("seed", seed, 0, 2**63 - 1)
        if isinstance(validation_fraction, bool) or not isinstance(validation_fraction, (int, float)):
            raise TypeError(f"validation_fraction must be a number between 0 and 1, found {validation_fraction!r}")
        if not 0.0 < validation_fraction < 1.0:
            raise ValueError(f"validation_fraction must lie strictly between 0 and 1, found {validation_fraction!r}")
        self.validation_fraction = float(validation_fraction)
        check_partition(partition, alpha)
        self.partition, self.alpha = partition, float(alpha)
        if partition_seed is None:
            partition_seed = self.seed
        self.partition_seed = check_integer("partition_seed", partition_seed, 0, 2**63 - 1)
        self._place: tuple[int, int] | None = None
        self._images: LabelledImages | None = None
        self._images_digest: str | None = None
        self._split_digest: str | None = None
        self._test_images: LabelledImages | None = None
        self._train_indices: list[int] = []
        self._validation_indices: list[int] = []

    @abstractmethod
    def load(self) -> LabelledImages:
        """Return all images of training and validation, in an order that does not depend on the machine."""

    def load_test(self) -> LabelledImages | None:
        """Return the images of a test set of its own, or ``None``: testing then uses the validation images."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load the images and split them; calling it again changes nothing.

        Args:
            stage: Lightning's stage; the test set is loaded when it is first asked for (``"test"`` or ``None``).

        Raises:
            ValueError: If there are too few images for the split, or ``partition`` needs labels that there are not.
        """
        if stage == "fit":
            self._place = None
        if self._images is None:
            self._check_partition_has_labels()
            images = self.load()
            count = len(images)
            held_back = max(1, round(count * self.validation_fraction))
            if held_back >= count:
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} of {count} images leaves none to train on; "
                    f"give more images or a smaller fraction"
                )
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
            self._validation_indices, self._train_indices = sorted(order[:held_back]), sorted(order[held_back:])
            self._images = images
        if stage in (None, "test") and self._test_images is None:
            self._test_images = self.load_test()

    def _check_partition_has_labels(self) -> None:
        """Subclasses that find out about labels when they are made call this then: before any worker is started."""
        if self.partition != "iid" and self.num_classes is None:
            raise ValueError(
                f"partition={self.partition!r} deals images out by their labels, and {self.name!r} has none; valid "
                f"would be partition='iid', or data with labels"
            )

    def _loaded(self) -> LabelledImages:
        if self._images is None:
            raise RuntimeError(f"{type(self).__name__}.setup() must be called before its images are read")
        return self._images

    @property
    def train_dataset(self) -> Subset:
        """The training images, after :meth:`setup`."""
        return Subset(self._loaded(), self._train_indices)  # type: ignore[arg-type]

    @property
    def val_dataset(self) -> Subset:
        """The validation images, after :meth:`setup`."""
        return Subset(self._loaded(), self._validation_indices)  # type: ignore[arg-type]

    @property
    def test_dataset(self) -> LabelledImages | None:
        """The test set, after ``setup("test")``; None where the data has none of its own."""
        return self._test_images

    @property
    def train_labels(self) -> Tensor:
        """The labels of :attr:`train_dataset` in its order, ``(n,)`` ``int64``, after :meth:`setup`."""
        return labels_of(self._loaded())[self._train_indices]

    def shards(self, workers: int) -> list[npt.NDArray[np.int64]]:
        """Which images of :attr:`train_dataset` each of N workers trains on, the same on every worker.

        Args:
            workers: N.

        Returns:
            N arrays of positions in :attr:`train_dataset`. With ``partition="iid"`` every worker draws from all, so
            that each of them is 0 .. n - 1; otherwise they are disjoint.

        Raises:
            ValueError: If the images cannot be dealt to so many workers.
        """
        if self.partition == "iid":
            return [np.arange(len(self._train_indices))] * workers
        return make_shards(self.partition, self.train_labels.numpy(), workers, self.partition_seed, self.alpha)

    def check_workers(self, workers: int) -> None:
        """Refuse more workers than the training images suffice for, after :meth:`setup` and before any is started.

        Args:
            workers: N.

        Raises:
            ValueError: If the training images do not fill one batch on every worker, or cannot be dealt out.
        """
        self._dealt(workers)

    def _dealt(self, workers: int) -> list[npt.NDArray[np.int64]]:
        count = len(self._train_indices)
        if count < self.batch_size * workers:
            largest = count // workers
            advice = f"at most batch_size={largest}" if largest else f"at most {count} workers"
            raise ValueError(
                f"batch_size={self.batch_size} on {workers} worker(s) needs at least {self.batch_size * workers} "
                f"training images, found {count} in {self.name!r}; valid would be {advice}"
            )
        return self.shards(workers)

    def class_histograms(self, workers: int) -> list[list[int]]:
        """How many images of each class each of N workers trains on; see :meth:`shards`.

        Args:
            workers: N.

        Returns:
            N rows of ``num_classes`` counts; of one count where there are no labels.
        """
        labels = self.train_labels.numpy()
        return [class_histogram(labels[shard], self.num_classes or 1) for shard in self.shards(workers)]

    def partition_digest(self) -> int:
        """A number that is the same on two workers if they deal out the same labels in the same way; 62 bits."""
        parts = (self.partition, self.alpha, self.partition_seed, len(self._train_indices))
        digest = hashlib.sha256(repr(parts).encode())
        digest.update(self.train_labels.numpy().data)
        return int.from_bytes(digest.digest()[:8]) >> 2

    def split_digest(self) -> str:
        """Digest of what decides which images are held back (after :meth:`setup`), read from labels and names alone.

        How many there are, their labels and file names in order, the fraction and the seed: with one file more or less
        other images are drawn, and some that one run trained on would be another's validation images.
        """
        if self._split_digest is None:
            images = self._loaded()
            digest = hashlib.sha256(repr((len(images), self.validation_fraction, self.seed)).encode())
            digest.update(labels_of(images).numpy().data)
            digest.update("\0".join(getattr(images, "paths", ())).encode(errors="surrogateescape"))
            self._split_digest = digest.hexdigest()
        return self._split_digest

    def fingerprint(self) -> str:
        """Digest of all images and labels, their sizes and the split (after :meth:`setup`): equal means equal data.

        The images are read once for it, which takes a while for a large folder.
        """
        if self._images_digest is None:
            self._images_digest = self._loaded().fingerprint()
        parts = (
            self.name,
            self.channels,
            self.image_size,
            self.num_classes,
            self.validation_fraction,
            self.seed,
            self._images_digest,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _loader(self, dataset: Any, *, train: bool, sampler: Sampler[int] | None = None) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=train and sampler is None,
            sampler=sampler,
            drop_last=train,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of exactly ``batch_size`` images; what is left over at the end of an epoch is dropped.

        Raises:
            ValueError: If the training images do not fill one batch on every worker, or cannot be dealt out.
        """
        dataset = self.train_dataset
        worker, workers = self._worker_of_workers()
        shards = self._dealt(workers)
        if self.partition == "iid":
            return self._loader(dataset, train=True)
        if len(shards[worker]) < self.batch_size:
            warnings.warn(
                f"partition={self.partition!r} gives worker {worker} {len(shards[worker])} training image(s), fewer "
                f"than batch_size={self.batch_size}: its batches hold them several times",
                stacklevel=2,
            )
        # The seed that Lightning gives its own samplers.
        order_seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return self._loader(dataset, train=True, sampler=ShardSampler(shards, worker, order_seed))

    def _worker_of_workers(self) -> tuple[int, int]:
        """This worker's number and how many there are, kept for one fit.

        Loaders may be made anew every few epochs; were the data dealt out among those who are left by then, workers who
        learn of a loss at different moments would have epochs of different lengths.
        """
        if self.trainer is None:
            return 0, 1
        if self._place is None:
            self._place = int(self.trainer.global_rank), int(self.trainer.world_size)
        return self._place

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The validation images in order, the last batch as short as it is."""
        return self._loader(self.val_dataset, train=False)

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """The test images in order; data without a test set of its own is tested on the validation images."""
        return self._loader(self.val_dataset if self._test_images is None else self._test_images, train=False)
