"""Fashion-MNIST as a DataModule, read from idx files that are already on the machine.

It looks into one folder for the four files, plain or gzipped, and checks what it reads. It never downloads; an error
says which files are missing and how to bring them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.data.idx import IdxError, read_idx
from lightning_decgan.data.images import InMemoryImages, resize_images
from lightning_decgan.data.partition import Partition

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""

_SIDE = 28
_MAXIMUM_IMAGE_SIZE = 64
_MAXIMUM_FILE_BYTES = 64 * 2**20  # the largest of the four unpacks to 47 MB
_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
          "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 pixels of ten kinds of clothes, scaled to [-1, 1].

    The 60,000 are split into training and validation; the 10,000 are the test set. Images stay ``uint8`` in memory
    (47 MB) and are scaled when they are read; another ``image_size`` is reached by antialiased bicubic interpolation,
    rounded to ``uint8`` again.

    Args:
        root: The folder with the four files (``train-images-idx3-ubyte`` and so on, with or without ``.gz``), or one
            that has them in ``FashionMNIST/raw/``. ``None``: the place of Debian's package ``dataset-fashion-mnist``.
        batch_size: Images in a batch of one worker.
        image_size: The side in pixels, from 8 to 64.
        validation_fraction: The share of the 60,000 kept for validation; the default is 5,000 images.
        num_workers: Loader processes of each worker.
        seed: Of the split into training and validation.
        partition, alpha, partition_seed: What each worker trains on; see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: When it is made, if files are missing: names them, the folders looked into, and a remedy.
        TypeError: If an integer argument is not an integer.
        ValueError: If an argument is out of range; in ``setup``, if a file does not hold what it should.

    Example:
        >>> clothes = FashionMNISTDataModule("/no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: Fashion-MNIST: train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], ...

    Source:
        H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms", arXiv:1708.07747, table 2 (classes). MIT licence.
    """

    name = "fashion_mnist"
    channels = 1
    num_classes = 10
    class_names = (
        "t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
    )  # fmt: skip

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        image_size: int = 28,
        validation_fraction: float = 1 / 12,
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
        # Looked for at once: a missing file is then an error before any worker is started.
        self._paths = _find_files(None if root is None else Path(root).expanduser())

    def load(self) -> InMemoryImages:
        """Return the 60,000 images of training and validation."""
        return self._read("train")

    def load_test(self) -> InMemoryImages:
        """Return the 10,000 images of the test set."""
        return self._read("test")

    def _read(self, part: str) -> InMemoryImages:
        image_path, label_path = (self._paths[name] for name in _FILES[part])
        images, labels = (read_idx(path, maximum_bytes=_MAXIMUM_FILE_BYTES) for path in (image_path, label_path))
        if images.dtype != np.uint8 or images.shape[1:] != (_SIDE, _SIDE):
            raise IdxError(
                f"{image_path}: valid is (n, {_SIDE}, {_SIDE}) of uint8, found {images.shape} of {images.dtype}"
            )
        if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise IdxError(f"{label_path}: valid is ({len(images)},) of uint8, found {labels.shape} of {labels.dtype}")
        if labels.size and labels.max() >= self.num_classes:
            raise IdxError(f"{label_path}: labels go from 0 to {self.num_classes - 1}, found {labels.max()}")
        pixels = resize_images(torch.from_numpy(images).unsqueeze(1), self.image_size)
        return InMemoryImages(pixels, torch.from_numpy(labels).long())


def _find_files(root: Path | None) -> dict[str, Path]:
    """The four files by their names without ``.gz``, all from one folder."""
    folders = [SYSTEM_FOLDER] if root is None else [root, root / "FashionMNIST" / "raw"]
    names = [name for pair in _FILES.values() for name in pair]
    fewest_missing = names
    for folder in folders:
        found = {
            name: path
            for name in names
            for path in (folder / f"{name}.gz", folder / name)
            if path.is_file()
        }  # fmt: skip
        missing = [name for name in names if name not in found]
        if not missing:
            return found
        fewest_missing = min(fewest_missing, missing, key=len)
    raise FileNotFoundError(
        f"Fashion-MNIST: {', '.join(f'{name}[.gz]' for name in fewest_missing)} not found in "
        f"{' or '.join(str(folder) for folder in folders)}. Install Debian's package dataset-fashion-mnist "
        f"(it fills {SYSTEM_FOLDER}, used when root is not given), or put the four files into a folder and pass it "
        f"as root"
    )
