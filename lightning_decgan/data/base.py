"""What the DataModules of images have in common: the split, the loaders, and images that are kept in memory.

A subclass says which images there are; this module splits them by a seed and hands out loaders that Lightning can give
a shard per worker. It never downloads, never augments, and never touches the global random number generator: the order
of training batches is Lightning's business (its sampler, its seed), the split is this module's.
"""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

MINIMUM_IMAGE_SIZE = 8
_RESIZE_CHUNK_IMAGES = 4096


def require_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` as an ``int`` if it is an integer between ``minimum`` and ``maximum``.

    Args:
        name: The argument's name, for the error.
        value: What the caller gave. NumPy integers pass, booleans and floats do not.
        minimum: The smallest value that is allowed.
        maximum: The largest value that is allowed, or ``None``.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If it is out of range.

    Example:
        >>> require_integer("batch_size", 64, minimum=1)
        64
        >>> require_integer("batch_size", 0, minimum=1)
        Traceback (most recent call last):
        ValueError: batch_size must be an integer >= 1, found 0
    """
    valid = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"{name} must be an integer {valid}, found {value!r}")
    if integer < minimum or (maximum is not None and integer > maximum):
        raise ValueError(f"{name} must be an integer {valid}, found {value!r}")
    return integer


def resize_images(images: Tensor, image_size: int) -> Tensor:
    """Resize square images by antialiased bicubic interpolation, keeping dtype and range.

    Args:
        images: ``(n, c, s, s)``, ``uint8`` in 0..255 or floating point in [-1, 1].
        image_size: The new side in pixels.

    Returns:
        ``(n, c, image_size, image_size)`` of the same dtype; bicubic overshoot is clamped to the range.

    Example:
        >>> resize_images(torch.full((2, 1, 8, 8), 0.5), 12).shape
        torch.Size([2, 1, 12, 12])
    """
    if images.shape[-2:] == (image_size, image_size):
        return images
    whole_numbers = images.dtype == torch.uint8
    resized = images.new_empty((*images.shape[:2], image_size, image_size))
    # In pieces: the floating-point copy of a whole data set would be four times its size.
    for piece, target in zip(images.split(_RESIZE_CHUNK_IMAGES), resized.split(_RESIZE_CHUNK_IMAGES), strict=True):
        values = piece.float() if whole_numbers else piece
        values = functional.interpolate(values, size=(image_size, image_size), mode="bicubic", antialias=True)
        target.copy_(values.round_().clamp_(0, 255) if whole_numbers else values.clamp_(-1, 1))
    return resized


@runtime_checkable
class LabelledImages(Protocol):
    """A map-style data set of ``(image, label)`` pairs that can say what is in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def fingerprint(self) -> str:
        """A hexadecimal digest of all images and labels: equal digests mean equal data."""
        ...


class InMemoryImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels held in memory; ``uint8`` images take a quarter of the space and are scaled when read.

    Args:
        images: ``(n, c, h, w)``: ``uint8`` in 0..255 (read as ``x / 127.5 - 1``) or ``float32`` in [-1, 1].
        labels: ``(n,)`` ``int64``.

    Raises:
        ValueError: If shapes or dtypes are others.

    Example:
        >>> data = InMemoryImages(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([3]))
        >>> image, label = data[0]
        >>> image.max().item(), label.item()
        (1.0, 3)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"images must be (n, c, h, w) of uint8 or float32, found {tuple(images.shape)} of {images.dtype}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(images)},) of int64, found {tuple(labels.shape)} of {labels.dtype}")
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def _scaled(self, images: Tensor) -> Tensor:
        return images.float().div_(127.5).sub_(1.0) if images.dtype == torch.uint8 else images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._scaled(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Read a whole batch at once: torch's loader asks for this where it exists."""
        picked = torch.as_tensor(indices, dtype=torch.int64)
        images, labels = self._scaled(self.images[picked]), self.labels[picked]
        return list(zip(images.unbind(), labels.unbind(), strict=True))

    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype, pixels and labels."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


class ImageDataModule(LightningDataModule, ABC):
    """A LightningDataModule whose batches are ``(images, labels)``: NCHW ``float32`` in [-1, 1], and ``int64``.

    A subclass sets ``name``, ``channels``, ``num_classes`` and ``class_names`` and defines :meth:`load`. The images are
    then split once, by ``seed``, into training and validation; the same seed gives the same split on every worker and
    machine. Loaders are plain (``shuffle=True`` for training), so that Lightning puts its ``DistributedSampler`` into
    them and each worker trains on its own shard.

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
        seed: Of the split, nothing else.

    Raises:
        TypeError: If an integer argument is not an integer.
        ValueError: If an argument is out of range.
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
    ) -> None:
        super().__init__()
        self.batch_size = require_integer("batch_size", batch_size, minimum=1)
        self.image_size = require_integer("image_size", image_size, MINIMUM_IMAGE_SIZE, maximum_image_size)
        self.num_workers = require_integer("num_workers", num_workers, minimum=0)
        self.seed = require_integer("seed", seed, minimum=0, maximum=2**63 - 1)
        if isinstance(validation_fraction, bool) or not isinstance(validation_fraction, (int, float)):
            raise TypeError(f"validation_fraction must be a number between 0 and 1, found {validation_fraction!r}")
        if not 0.0 < validation_fraction < 1.0:
            raise ValueError(f"validation_fraction must lie strictly between 0 and 1, found {validation_fraction!r}")
        self.validation_fraction = float(validation_fraction)
        self._images: LabelledImages | None = None
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
            ValueError: If there are too few images for the split.
        """
        if self._images is None:
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

    def fingerprint(self) -> str:
        """Digest of all images and labels, their sizes and the split (after :meth:`setup`): equal means equal data."""
        parts = (
            self.name,
            self.channels,
            self.image_size,
            self.num_classes,
            self.validation_fraction,
            self.seed,
            self._loaded().fingerprint(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _loader(self, dataset: Any, *, train: bool) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=train,
            drop_last=train,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of exactly ``batch_size`` images; what is left over at the end of an epoch is dropped.

        Raises:
            ValueError: If the training images do not fill one batch on every worker.
        """
        dataset = self.train_dataset
        workers = int(self.trainer.world_size) if self.trainer is not None else 1
        if len(dataset) < self.batch_size * workers:
            largest = len(dataset) // workers
            advice = f"at most batch_size={largest}" if largest else f"at most {len(dataset)} workers"
            raise ValueError(
                f"batch_size={self.batch_size} on {workers} worker(s) needs at least {self.batch_size * workers} "
                f"training images, found {len(dataset)} in {self.name!r}; valid would be {advice}"
            )
        return self._loader(dataset, train=True)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The validation images in order, the last batch as short as it is."""
        return self._loader(self.val_dataset, train=False)

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """The test images in order; data without a test set of its own is tested on the validation images."""
        return self._loader(self.val_dataset if self._test_images is None else self._test_images, train=False)
