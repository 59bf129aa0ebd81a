"""Scikit-learn's handwritten digits as a DataModule: real images that come with an installed package.

1,797 images of 8 x 8 pixels, ten classes, small enough that a GAN shows digits after a minute on one core. It never
downloads: the images lie inside scikit-learn's own files.
"""

from __future__ import annotations

import torch

from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.data.images import InMemoryImages, resize_images
from lightning_decgan.data.partition import Partition

_LARGEST_VALUE = 16  # ink is counted from 0 to 16: the pixels set in a 4 x 4 block of the original bitmap
_MAXIMUM_IMAGE_SIZE = 64


class DigitsDataModule(ImageDataModule):
    """Scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, scaled from 0..16 to [-1, 1] by ``x / 8 - 1``.

    An ``image_size`` above 8 enlarges them by bicubic interpolation, clamped to [-1, 1]. There is no test set of its
    own: testing uses the validation images.

    Args:
        batch_size: Images in a batch of one worker.
        image_size: The side in pixels, from 8 to 64.
        validation_fraction: The share of images kept for validation.
        num_workers: Loader processes of each worker.
        seed: Of the split into training and validation.
        partition, alpha, partition_seed: What each worker trains on; see :class:`ImageDataModule`.

    Raises:
        TypeError: If an integer argument is not an integer.
        ValueError: If an argument is out of range, or a batch on every worker takes more images than there are.

    Example:
        >>> digits = DigitsDataModule(batch_size=32)
        >>> digits.setup()
        >>> images, labels = next(iter(digits.train_dataloader()))
        >>> images.shape, images.min().item(), images.max().item(), labels.dtype
        (torch.Size([32, 1, 8, 8]), -1.0, 1.0, torch.int64)

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998;
        the copy of ``sklearn.datasets.load_digits`` is its test part.
    """

    name = "digits"
    channels = 1
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 8,
        validation_fraction: float = 0.2,
        num_workers: int = 0,
        seed: int = 0,
        partition: Partition = "iid",
        alpha: float = 0.5,
        partition_seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            image_size,
            validation_fraction,
            num_workers,
            seed,
            maximum_image_size=_MAXIMUM_IMAGE_SIZE,
            partition=partition,
            alpha=alpha,
            partition_seed=partition_seed,
        )

    def load(self) -> InMemoryImages:
        """Return all 1,797 digits, resized."""
        from sklearn.datasets import load_digits  # half a second to import: only where the digits are really read

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().div_(_LARGEST_VALUE / 2).sub_(1.0).unsqueeze(1)
        return InMemoryImages(resize_images(images, self.image_size), torch.from_numpy(digits.target).long())
