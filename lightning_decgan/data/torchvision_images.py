"""Any of torchvision's data sets of images by the name of its class, as a DataModule.

Reading the files is torchvision's work; sizes, range, labels and the split are this module's. Nothing is downloaded
unless the user says so. torchvision itself is imported when a DataModule is made: the package works without it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_decgan.checks import check_integer
from lightning_decgan.data import torchvision_source as source
from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.data.image_folder import MAXIMUM_IMAGE_SIZE, image_to_tensor
from lightning_decgan.data.partition import Partition


class TorchvisionImages(Dataset[tuple[Tensor, Tensor]]):
    """One of torchvision's data sets, its images brought to size and range.

    Args:
        dataset: torchvision's object.
        reopen: Makes it again, in a process that it was pickled into.
        labels: ``(n,)`` ``int64``; the targets that the data set itself returns are not used.
        image_size: The side in pixels.
        channels: 1 for grey, 3 for RGB.
        description: Which data set this is; errors name it, and the fingerprint begins with it.
    """

    def __init__(
        self,
        dataset: Any,
        reopen: Callable[[], Any],
        labels: Tensor,
        image_size: int,
        channels: int,
        description: str,
    ) -> None:
        self.labels = labels
        self.image_size = image_size
        self.channels = channels
        self.description = description
        self._dataset = dataset
        self._reopen = reopen

    @property
    def dataset(self) -> Any:
        """The object that torchvision made."""
        if self._dataset is None:
            self._dataset = self._reopen()
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dataset": None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return image_to_tensor(self._image(index), self.image_size, self.channels), self.labels[index]

    def _image(self, index: int) -> Image.Image:
        dataset = self.dataset
        try:
            image = dataset[index][0]
        # Files are damaged in as many ways as there are readers; whichever it is, the user needs to know the image.
        except Exception as error:
            raise ValueError(f"cannot read image {index} of {self.description}: {error}") from error
        if not isinstance(image, Image.Image):
            raise TypeError(f"{self.description} must hold Pillow's images, found {type(image).__name__}")
        return image

    def fingerprint(self) -> str:
        """SHA-256 of description, labels and pixels: reads and decodes all images that are not in memory."""
        digest = hashlib.sha256(self.description.encode())
        digest.update(self.labels.numpy().data)
        pixels = getattr(self.dataset, "data", None)
        if isinstance(pixels, (np.ndarray, Tensor)) and len(pixels) == len(self):
            digest.update(np.ascontiguousarray(pixels).data)
            return digest.hexdigest()
        for index in range(len(self)):
            image = self._image(index)
            digest.update(f"{image.mode} {image.size}".encode())
            digest.update(image.tobytes())
        return digest.hexdigest()


class TorchvisionDataModule(ImageDataModule):
    """A data set of ``torchvision.datasets``: CIFAR10, CIFAR100, SVHN, STL10, CelebA, LSUN, ImageNet, Flowers102, ...

    The part that the class opens by default, the one for training, is split into training and validation images; its
    part for testing, if it has one, is the test set. Images are center-cropped and resized as by
    :func:`~lightning_decgan.data.image_folder.image_to_tensor`. Classes are numbered from 0, in the order of the data
    set's own numbers. Labels are read without reading images where torchvision keeps them; where it does not, making
    this object reads every image once.

    Args:
        name: The class in ``torchvision.datasets``.
        root: The folder with the files, laid out as that class wants them.
        batch_size: Images in a batch of one worker.
        image_size: The side in pixels, from 8 to 1024.
        channels: 1 for grey, 3 for RGB.
        validation_fraction: The share of the part for training that is kept for validation.
        num_workers: Loader processes of each worker.
        seed: Of the split into training and validation.
        partition, alpha, partition_seed: What each worker trains on; see :class:`ImageDataModule`.
        labels: ``True``: the classes of the data set. ``False``: none. The name of an attribute, where images have
            several (CelebA): two classes, without it and with it.
        arguments: More arguments for the class, as ``{"classes": ["bedroom_train"]}`` for LSUN.
        test_arguments: What replaces them for the test set; ``None``: ``train=False``, or the ``split`` for testing,
            where the class has such an argument.
        download: Let torchvision fetch files that are not in ``root``: on one worker of each machine, before training.

    Raises:
        ImportError: When it is made, if torchvision is not installed or does not fit torch.
        FileNotFoundError: When it is made, if torchvision cannot read the files and ``download`` is ``False``.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, the class does not exist or refuses ``arguments``, or there are no
            labels where they are asked for. Later, if an image cannot be read.

    Example:
        >>> TorchvisionDataModule("CIFAR10", root="data", image_size=4)
        Traceback (most recent call last):
        ValueError: image_size must be an integer from 8 to 1024, found 4
    """

    def __init__(
        self,
        name: str,
        root: str | os.PathLike[str],
        batch_size: int = 64,
        image_size: int = 64,
        channels: int = 3,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        partition: Partition = "iid",
        alpha: float = 0.5,
        partition_seed: int | None = None,
        labels: bool | str = True,
        arguments: Mapping[str, Any] | None = None,
        test_arguments: Mapping[str, Any] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(
            batch_size,
            image_size,
            validation_fraction,
            num_workers,
            seed,
            maximum_image_size=MAXIMUM_IMAGE_SIZE,
            partition=partition,
            alpha=alpha,
            partition_seed=partition_seed,
        )
        self.channels = check_integer("channels", channels, 1, 3)
        if self.channels == 2:
            raise ValueError("channels must be 1 (grey) or 3 (RGB), found 2")
        if not isinstance(labels, (bool, str)):
            raise TypeError(f"labels must be True, False or the name of an attribute, found {labels!r}")
        self.dataset_name, self.root, self.download = name, Path(root).expanduser().absolute(), download
        self._arguments = dict(arguments or {})
        source.check_arguments(name, self._arguments | dict(test_arguments or {}))
        if test_arguments is None:
            test_arguments = source.default_test_arguments(name, self._arguments)
        self._test_arguments = None if test_arguments is None else self._arguments | dict(test_arguments)
        if download and not source.can_download(name):
            raise ValueError(
                f"download must be False for {name}, which torchvision cannot fetch; bring its files to {self.root}"
            )
        self.name = name.lower()
        self.num_classes, self.class_names = None, None
        self._label_choice = labels
        self._classes: dict[int, str] | None = None
        self._opened: Any = None
        self._labels: Tensor | None = None  # of the part for training, also in the processes that it is sent to
        try:
            self._open()  # missing files are then an error before any worker is started
        except FileNotFoundError:
            if not download:
                raise

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # another process opens the files itself

    def prepare_data(self) -> None:
        """Fetch what is missing, if ``download`` says so; Lightning calls this on one worker of each machine."""
        if self.download:
            for arguments in (self._arguments, self._test_arguments):
                if arguments is not None:
                    source.open_dataset(self.dataset_name, self.root, arguments, download=True)
            self._open()

    def setup(self, stage: str | None = None) -> None:
        """Open the files and split the images; calling it again changes nothing.

        Args:
            stage: See :meth:`ImageDataModule.setup`.
        """
        if self._images is None:
            self._open()
        super().setup(stage)

    def load(self) -> TorchvisionImages:
        """Return the images of the part for training."""
        self._open()
        dataset, self._opened = self._opened, None
        return self._wrap(dataset, self._arguments, self._labels)

    def load_test(self) -> TorchvisionImages | None:
        """Return the images of the part for testing, if there is one."""
        if self._test_arguments is None:
            return None
        dataset = source.open_dataset(self.dataset_name, self.root, self._test_arguments)
        return self._wrap(dataset, self._test_arguments)

    def _open(self) -> None:
        """Open the part for training, and learn its classes."""
        if self._opened is None:
            self._opened = source.open_dataset(self.dataset_name, self.root, self._arguments)
            if self._labels is None:
                self._labels = source.read_labels(self.dataset_name, self._opened, self._label_choice)
            self._classes = source.read_classes(self._opened, self._labels, self._label_choice)
            self.class_names = None if self._classes is None else tuple(self._classes.values())
            self.num_classes = None if self._classes is None else len(self._classes)
            self._check_partition_has_labels()

    def _wrap(self, dataset: Any, arguments: dict[str, Any], labels: Tensor | None = None) -> TorchvisionImages:
        if labels is None:
            labels = source.read_labels(self.dataset_name, dataset, self._label_choice)
        settings = "".join(f", {key}={value!r}" for key, value in sorted(arguments.items()))
        return TorchvisionImages(
            dataset,
            partial(source.open_dataset, self.dataset_name, self.root, arguments),
            source.number_labels(labels, self._classes),
            self.image_size,
            self.channels,
            f"torchvision's {self.dataset_name}(labels={self._label_choice!r}{settings})",
        )
